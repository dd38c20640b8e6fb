import subprocess
import sys

import gymnasium
import pytest

import agentgym
from agentgym import AgentEnv, AgentGymError, Reply, Task, register
from agentgym.registry import GROUP, make


class Echo(AgentEnv):
    def __init__(self, times=1):
        super().__init__()
        self.times = times

    def tasks(self, split):
        return [Task("t", "Say something.")]

    def act(self, action):
        return Reply(action.text * self.times, ends=True)


@pytest.fixture(autouse=True)
def registry():
    """Gymnasium's registry as it was before the test."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_an_unknown_environment_is_answered_with_the_nearest_names():
    register("tests/Echo-v0")(Echo)
    with pytest.raises(AgentGymError, match=r"no environment named 'tests/Ecko-v0'; did you mean 'tests/Echo-v0'"):
        agentgym.make("tests/Ecko-v0")
    with pytest.raises(AgentGymError, match="agentgym/Search-v0"):
        agentgym.make("agentgym/Serch-v0")


def test_a_registered_class_is_made_with_its_arguments_here_and_by_gymnasium():
    assert register("tests/Echo-v0", times=2)(Echo) is Echo
    assert agentgym.make("tests/Echo-v0").times == 2
    assert agentgym.make("tests/Echo-v0", times=3).times == 3
    env = gymnasium.make("tests/Echo-v0")
    assert isinstance(env.unwrapped, Echo)
    env.reset(seed=0)
    assert env.step("ha")[0] == "haha"


def test_a_class_that_cannot_be_imported_by_its_path_can_be_registered():
    @register("tests/Local-v0")
    class Local(Echo):
        pass

    assert type(agentgym.make("tests/Local-v0")) is Local


def test_module_and_class_name_an_environment_that_nobody_registered():
    assert type(agentgym.make(f"{__name__}:Echo", times=4)) is Echo
    for path in ("no_such_module:Echo", f"{__name__}:Ecko"):
        with pytest.raises(AgentGymError, match="Write it as module:Class"):
            agentgym.make(path)
    with pytest.raises(AgentGymError, match=r"not an agentgym\.AgentEnv"):
        agentgym.make("builtins:dict")


def test_an_environment_of_another_kind_or_that_cannot_be_made_is_named():
    with pytest.raises(AgentGymError, match=r"CartPoleEnv, not an agentgym\.AgentEnv"):
        agentgym.make("CartPole-v1")
    gymnasium.register("tests/Gone-v0", entry_point="no_such_module:Gone")
    gymnasium.register("tests/Missing-v0", entry_point=f"{__name__}:Missing")
    for id in ("tests/Gone-v0", "tests/Missing-v0"):
        with pytest.raises(AgentGymError, match=f"{id}' cannot be made"):
            agentgym.make(id)


ORDERS = """
import agentgym
class Orders(agentgym.AgentEnv):
    def tasks(self, split):
        return [agentgym.Task("o", "Order tea.")]
"""


def install(folder, entry_points):
    """A distribution as an installer leaves it: a module, and a dist-info folder with entry points."""
    (folder / "mine_orders.py").write_text(ORDERS)
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry_points}\n")


def python(folder, code):
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_an_installed_package_brings_its_environments_without_being_imported(tmp_path):
    install(tmp_path, "mine/Orders-v0 = mine_orders:Orders")
    code = "import agentgym, gymnasium; assert 'mine_orders' not in sys.modules; "
    code += "env = gymnasium.make('mine/Orders-v0', disable_env_checker=True); print(env.reset(seed=0)[0])"
    done = python(tmp_path, code)
    assert (done.stdout, done.returncode) == ("Order tea.\n", 0), done.stderr


def test_a_bad_entry_point_of_another_package_is_warned_of_and_stops_nothing(tmp_path):
    install(tmp_path, "not a name! = mine_orders:Orders\nmine/Orders-v0 = mine_orders:Orders")
    done = python(tmp_path, "import agentgym; print(type(agentgym.make('mine/Orders-v0')).__name__)")
    assert (done.stdout, done.returncode) == ("Orders\n", 0), done.stderr
    assert "'not a name!' of mine_orders:Orders is not registered" in done.stderr


def test_an_argument_that_an_environment_does_not_take_is_named():
    for id in ("agentgym/Search-v0", "agentgym.envs.search:Search"):
        with pytest.raises(AgentGymError, match=r"cannot be made: got an unexpected keyword argument 'nope'"):
            make(id, nope=1)
