"""The attempts of `test_sandbox_escapes`: programs, which print ESCAPED where they get what they are after, or how they were stopped."""

from __future__ import annotations

SECRET = "c4n4ry-of-the-host"
MARK = "agentgym-mark"  # the name that what tries to survive gives itself

# Every attempt begins with the names of what it may go for, and this.
PRELUDE = """
import ctypes, gc, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action, bad=lambda found: True):
    try:
        found = action()
    except BaseException as error:
        print("stopped:", type(error).__name__, flush=True)
    else:
        print("ESCAPED" if bad(found) else "nothing", repr(found)[:200] if bad(found) else "", flush=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def syscall(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "syscall")

def mark():
    libc.prctl(15, MARK.encode(), 0, 0, 0)

def write(path, text, flags=os.O_WRONLY):
    fd = os.open(path, flags)
    os.write(fd, text.encode())

def connect(family, address, kind=socket.SOCK_STREAM):
    sock = socket.socket(family, kind)
    sock.settimeout(0.3)
    sock.connect(address)
    sock.send(b"x")
"""

FILES = {
    "read a file of the host": "attempt(lambda: open(CANARY).read())",
    "write a file of the host": "attempt(lambda: write(CANARY, 'x'))",
    "create a file beside it": "attempt(lambda: open(CANARY + '.new', 'w'))",
    "read the password file": "attempt(lambda: open('/etc/shadow').read())",
    "read the repository": "attempt(lambda: os.listdir(REPOSITORY))",
    "list the home of root": "attempt(lambda: os.listdir('/root'))",
    "read through a symbolic link": "os.symlink(CANARY, 'a')\nattempt(lambda: open('a').read())",
    "leave a symbolic link for the collector": """
os.symlink(CANARY, "a")
os.symlink("/etc/passwd", "b")
os.symlink("/", "c")
print("left")""",
    "link a file of the host": "attempt(lambda: os.link(CANARY, 'a'))",
    "go up and out": "attempt(lambda: os.listdir('../' * 20 + CANARY[1:].rpartition('/')[0]))",
    "the root of the first process": "attempt(lambda: os.listdir('/proc/1/root/'))",
    "the working folder of the parent": "attempt(lambda: os.listdir(f'/proc/{os.getppid()}/cwd/'))",
    "descriptors left open": """
def held():
    found = []
    for fd in range(3, 1024):
        try:
            found.append((fd, os.fstat(fd)))
        except OSError:
            pass
    return found
attempt(held, bad=bool)""",
    "descriptors of the parent": "attempt(lambda: os.listdir(f'/proc/{os.getppid()}/fd'), bad=lambda f: True)",
    "devices of memory and disk": """
for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/loop0"):
    attempt(lambda: os.open(path, os.O_RDONLY))""",
    "the device of file systems": "attempt(lambda: os.open('/dev/fuse', os.O_RDWR))",
    "make a device": "attempt(lambda: os.mknod('disk', 0o60660, os.makedev(254, 0)))",
    "the memory of the kernel": "attempt(lambda: open('/proc/kcore', 'rb').read(1))",
    "the log of the kernel": "attempt(lambda: call('klogctl', 3, ctypes.create_string_buffer(100), 100))",
    "write the standard library": "attempt(lambda: write(os.__file__, 'x'))",
    "replace Python": "attempt(lambda: os.unlink(sys.executable))",
    "write at the root": "attempt(lambda: open('/new', 'w'))",
    "write the host names": "attempt(lambda: write('/etc/hosts', 'x'))",
    "settings of the kernel": """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger", "/sys/power/state",
             "/sys/kernel/uevent_helper", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/proc/self/uid_map"):
    attempt(lambda: write(path, "0"))""",
    "open a file by its handle": "attempt(lambda: call('open_by_handle_at', -100, bytes(64), 0))",
    "the code of the worker": "attempt(lambda: [os.listdir('/worker'), os.listdir('/worker/inside')])",
    "the socket of the worker": "attempt(lambda: connect(socket.AF_UNIX, '/run/agentgym/socket'))",
    "a core dump": """
attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)))
if os.fork() == 0:
    os.abort()
os.wait()
attempt(lambda: [name for name in os.listdir('.') if 'core' in name], bad=bool)""",
}
NETWORK = {
    "connect to loopback of the host": "attempt(lambda: connect(socket.AF_INET, ('127.0.0.1', PORT)))",
    "connect to an address of the host": "attempt(lambda: connect(socket.AF_INET, (ADDRESS, PORT)))",
    "connect by IPv6": "attempt(lambda: connect(socket.AF_INET6, ('::ffff:127.0.0.1', PORT)))",
    "send a datagram": "attempt(lambda: connect(socket.AF_INET, ('8.8.8.8', 53), socket.SOCK_DGRAM))",
    "resolve a name": "attempt(lambda: socket.getaddrinfo('example.com', 80))",
    "bind an address of the host": "attempt(lambda: socket.socket().bind((ADDRESS, 0)) if ADDRESS != '127.0.0.1' else 1 / 0)",
    "a raw socket": "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))",
    "a packet socket": "attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))",
    "a netlink socket": "attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))",
    "a socket to the hypervisor": "attempt(lambda: socket.socket(socket.AF_VSOCK))",
    "a socket of the kernel's ciphers": "attempt(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))",
    "a Unix socket of the host": "attempt(lambda: connect(socket.AF_UNIX, UNIX))",
    "an abstract Unix socket of the host": "attempt(lambda: connect(socket.AF_UNIX, chr(0) + 'agentgym-canary'))",
    "the engine's socket": """
for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock"):
    attempt(lambda: connect(socket.AF_UNIX, path))""",
    "another interface": "attempt(socket.if_nameindex, bad=lambda found: found != [(1, 'lo')])",
}
PROCESSES = {
    "kill a process of the host": "attempt(lambda: os.kill(VICTIM, 9))",
    "see a process of the host": "attempt(lambda: os.listdir(f'/proc/{VICTIM}'))",
    "kill everybody": "attempt(lambda: os.kill(-1, signal.SIGKILL), bad=lambda _: False)",
    "kill the parent": "attempt(lambda: os.kill(os.getppid(), signal.SIGKILL), bad=lambda _: False)",
    "stop all that can be seen": """
for pid in [os.getppid(), 1, *(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())]:
    attempt(lambda: os.kill(pid, signal.SIGSTOP), bad=lambda _: False)""",
    "trace the parent": "attempt(lambda: call('ptrace', 16, os.getppid(), 0, 0))",
    "be traced": "attempt(lambda: call('ptrace', 0, 0, 0, 0))",
    "the memory of the parent": "attempt(lambda: open(f'/proc/{os.getppid()}/mem', 'rb'))",
    "read another's memory by a call": "attempt(lambda: call('process_vm_readv', os.getppid(), bytes(16), 1, bytes(16), 1, 0))",
    "a descriptor of another process": "attempt(lambda: syscall(438, os.pidfd_open(os.getppid()), 0, 0))",
    "a fork bomb": "print('begun', flush=True)\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "a fork bomb of new sessions": """
print("begun", flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            mark()
    except OSError:
        pass""",
    "a bomb of threads": """
print("begun", flush=True)
while True:
    try:
        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    except RuntimeError:
        pass""",
    "a daemon": """
if os.fork() == 0:
    os.setsid()
    mark()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
    time.sleep(60)
print("left")""",
    "a daemon that holds the output open": """
if os.fork() == 0:
    os.setsid()
    mark()
    time.sleep(0.3)
    print("ESCAPED", flush=True)
    time.sleep(60)
print("left")""",
    "a daemon that adopts daemons": """
libc.prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
    libc.prctl(36, 1, 0, 0, 0)
    mark()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    time.sleep(60)
print("left")""",
    "a daemon that ignores signals": """
if os.fork() == 0:
    os.setsid()
    mark()
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        time.sleep(60)
print("left")""",
    "a program in the background": "subprocess.Popen(['/bin/sh', '-c', 'sleep 60 &'], start_new_session=True)\nprint('left')",
    "a higher priority": "attempt(lambda: os.nice(-5))",
    "a priority of real time": "attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))",
}
RESOURCES = {
    "a bomb of memory": "print('begun', flush=True)\nx = []\nwhile True:\n    x.append(bytearray(2**22))",
    "memory that is shared": """
import mmap
print("begun", flush=True)
x = mmap.mmap(-1, 2**33)
for i in range(0, 2**33, 4096):
    x[i] = 1""",
    "memory of many processes": """
print("begun", flush=True)
for _ in range(3):
    os.fork()
x = b"x" * (24 * 2**20)
time.sleep(9)""",
    "memory that belongs to nobody": "attempt(lambda: os.memfd_create('x'))",
    "shared memory of System V": "attempt(lambda: syscall(29, 0, 2**30, 0o1666))",
    "a flood of the shared memory folder": "attempt(lambda: open('/dev/shm/x', 'wb').write(bytes(2**26)))",
    "recursion without end": "sys.setrecursionlimit(2**31 - 1)\nprint('begun', flush=True)\ndef f(x):\n    return [f(x)] + f(x)\nf(1)",
    "raise the limits": """
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    attempt(lambda: resource.setrlimit(which, (-1, -1)))""",
    "an endless loop that no signal ends": """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
print("begun", flush=True)
while True:
    pass""",
    "a flood of output": "while True:\n    print('x' * 10000)",
    "a flood of errors": "while True:\n    print('x' * 10000, file=sys.stderr)",
    "a flood without lines": "while True:\n    sys.stdout.write('x' * 65536)",
    "a flood of bytes": "while True:\n    os.write(1, bytes(range(256)) * 256)",
    "a flood from children": "for _ in range(4):\n    os.fork()\nwhile True:\n    os.write(1, b'x' * 65536)",
    "a device that is always full": "attempt(lambda: open('/dev/full', 'w', buffering=1).write('x' + chr(10)))",
    "a large file": "print('begun', flush=True)\nwith open('a', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))",
    "a large file in /tmp": """
print("begun", flush=True)
with open(os.environ["TMPDIR"] + "/a", "wb") as f:
    while True:
        f.write(bytes(2**20))""",
    "a large file that has no name": """
print("begun", flush=True)
f = open("a", "wb")
os.unlink("a")
while True:
    f.write(bytes(2**20))""",
    "many small files": "print('begun', flush=True)\nfor i in range(200_000):\n    open(str(i), 'w').write('x')",
    "a file of holes": "attempt(lambda: os.truncate(os.open('a', os.O_CREAT | os.O_RDWR), 2**45))",
    "folders without end": "print('begun', flush=True)\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
}
LEFT = {
    "a pipe, a socket and a folder without rights": """
os.mkfifo("pipe")
try:
    socket.socket(socket.AF_UNIX).bind("socket")
except OSError:
    pass
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed", 0)
print("left")""",
    "names that mislead": """
for name in (b"a\\nb", b"\\xff\\xfe", b".. ", b"...", b"-rf", b"a\\\\..\\\\b", b"\\x1b[31m"):
    open(name, "wb").write(b"x")
print("left")""",
    "a file that makes root": "open('a', 'w').close()\nos.chmod('a', 0o6777)\nprint('left')",
    "environment variables of the host": "print(dict(os.environ))",
    "environments of other processes": "attempt(lambda: [open(f'/proc/{pid}/environ').read() for pid in (1, os.getppid())])",
    "the tests of another call, by their name": """
found = [folder for folder, _, names in os.walk("/") if "hidden_tests.py" in names]
attempt(lambda: found, bad=bool)""",
    "the tests of another call, in memory": """
def search():  # for what is reversed here, so that it does not find itself
    memory = open("/proc/self/mem", "rb", 0)
    for line in open("/proc/self/maps"):
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if line.split()[1].startswith("rw"):
            memory.seek(low)
            if NEEDLE.encode() in memory.read(high - low)[::-1]:
                return line
attempt(search, bad=bool)""",
    "forge a result on every descriptor": """
import json, struct
answer = json.dumps({"status": 0, "stopped": "", "seconds": 0, "missing": [0, 0], "files": [], "sizes": [7, 0]}).encode()
frame = struct.pack("!II", len(answer), len(answer) + 7) + answer + b"ESCAPED"
for fd in range(3, 1024):
    try:
        os.write(fd, frame)
    except OSError:
        pass
print("tried")""",
    "forge a result on the output": """
import json, struct
answer = json.dumps({"status": 0, "stopped": "", "files": ["hidden_tests.py"], "sizes": [0]}).encode()
sys.stdout.buffer.write(struct.pack("!II", len(answer), len(answer)) + answer)
sys.stdout.flush()
os._exit(7)""",
    "outlast the call by exit functions": """
import atexit
class Last:
    def __del__(self):
        time.sleep(60)
x = Last()
atexit.register(time.sleep, 60)
threading.Thread(target=time.sleep, args=(60,)).start()
print("left", flush=True)""",
    "poison what the next call uses": """
import builtins, io, json, traceback
for module in (builtins, io, json, os, sys, traceback, threading):
    for name in ("print", "open", "exec", "compile", "dumps", "loads", "fork", "_exit", "waitpid", "print_exception"):
        if hasattr(module, name) and name != "_exit":
            setattr(module, name, None)
sys.settrace(lambda *a: None)
sys.setrecursionlimit(50)
os.write(1, b"left")""",
    "replace the import system": "sys.meta_path.clear()\nsys.path.clear()\nsys.modules.clear()\nsys.stdout.write('left')",
    "leave files for the next call": "open('left', 'w').close()\nopen(os.environ['TMPDIR'] + '/left', 'w').close()\nprint('left')",
}
KERNEL = {
    "set the clock": "attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, 0))",
    "slew the clock": "attempt(lambda: call('adjtimex', b'\\x01' + bytes(300)))",
    "set the name of the host": "attempt(lambda: socket.sethostname('x'))",
    "mount": "os.mkdir('m')\nattempt(lambda: call('mount', b'none', b'm', b'tmpfs', 0, None))",
    "mount by the newer calls": "attempt(lambda: syscall(430, b'tmpfs', 0))",
    "unmount": "attempt(lambda: call('umount2', b'/proc', 2))",
    "change the root": "os.mkdir('m')\nattempt(lambda: os.chroot('m'))",
    "new namespaces": """
for flag in (0x10000000, 0x10020000, 0x20000, 0x20000000, 0x40000000, 0x8000000):
    attempt(lambda: call("unshare", flag))""",
    "new namespaces by clone": """
def clone():
    pid = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
attempt(clone)""",
    "namespaces of another": "attempt(lambda: call('setns', os.open('/proc/1/ns/mnt', os.O_RDONLY), 0))",
    "become root": "attempt(lambda: os.setresuid(0, 0, 0) if os.getuid() else 1 / 0)\nattempt(lambda: os.setgroups([0]))",
    "become another user": "attempt(lambda: os.setresuid(os.getuid() + 1, os.getuid() + 1, os.getuid() + 1))",
    "capabilities": """
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
attempt(lambda: call("capset", header, data))
libc.capget(header, data)
attempt(lambda: list(data), bad=any)""",
    "keys of the kernel": "attempt(lambda: syscall(250, 0, -3, 0))",
    "programs in the kernel": "attempt(lambda: syscall(321, 0, bytes(120), 120))",
    "counters of performance": "attempt(lambda: syscall(298, bytes(120), 0, -1, -1, 0))",
    "faults of pages in user space": "attempt(lambda: syscall(323, 1))",
    "input and output by rings": "attempt(lambda: syscall(425, 8, bytes(120)))",
    "load a module": "attempt(lambda: syscall(313, 0, b'', 0))\nattempt(lambda: syscall(175, bytes(8), 8, b''))",
    "load another kernel": "attempt(lambda: syscall(246, 0, 0, 0, 0))\nattempt(lambda: syscall(169, 0xFEE1DEAD, 672274793, 0, 0))",
    "calls by other numbers": "attempt(lambda: syscall(0x40000000 + 165, b'none', b'm', b'tmpfs', 0, None))",
    "take off the filter": "attempt(lambda: call('prctl', 22, 0, 0, 0, 0))\nattempt(lambda: call('prctl', 4, 1, 0, 0, 0))",
}
NO_ANSWERS = {
    "no header": "b'[]'",
    "no sizes": "b'{}'",
    "no end": "b'[' * 3000",
    "a process of another kind": """b'{"pid": [], "sizes": []}'""",
    "sizes of another kind": """b'{"pid": 1, "sizes": ["a"]}'""",
    "sizes below zero": """b'{"pid": 1, "sizes": [-5]}'""",
    "an endless status": """b'{"status": 1e999, "sizes": []}'""",
    "another status": """b'{"status": [], "sizes": []}'""",
}
FORGED = {
    f"forge an answer with {name}": f"""
import struct
body = {body}
for fd in range(3, 1024):
    try:
        os.write(fd, struct.pack("!II", len(body), len(body)) + body)
    except OSError:
        pass
print("tried")"""
    for name, body in NO_ANSWERS.items()
}
ATTEMPTS = {**FILES, **NETWORK, **PROCESSES, **RESOURCES, **LEFT, **KERNEL, **FORGED}

# What within a history reaches other interpreters of the same history, and no further.
WITHIN_A_HISTORY = (
    "descriptors left open",
    "descriptors of the parent",
    "the working folder of the parent",
    "the memory of the parent",
    "kill everybody",
    "kill the parent",
    "stop all that can be seen",
    "forge a result on every descriptor",
    *FORGED,
)
# As an ordinary process of a user: what that user may read and signal, and what all users may write.
NOT_STOPPED_BY_SUBPROCESS = {
    "read a file of the host",
    "write a file of the host",
    "create a file beside it",
    "read the repository",
    "list the home of root",
    "read through a symbolic link",
    "link a file of the host",
    "go up and out",
    "the working folder of the parent",
    "the code of the worker",
    "the device of file systems",
    "a flood of the shared memory folder",
    "kill a process of the host",
    "see a process of the host",
    "stop all that can be seen",
    "a large file that has no name",
    "the tests of another call, by their name",
}
