"""Where the metrics of a training go beside its own logs: TensorBoard always, others as a recipe names them."""

from __future__ import annotations

import importlib
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import orjson

from agentgym.errors import MissingExtra
from agentgym.store import RunStore


class Tracker(Protocol):
    """Made with the run's ``folder`` and the recipe's arguments; what may fail later than that waits for the first step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """Several as one. A training needs none of them: one that fails is named in a warning and left out from there on."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self.trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in list(self.trackers):
            self._try(tracker, partial(tracker.log, step, metrics))

    def close(self) -> None:
        for tracker in list(self.trackers):
            self._try(tracker, tracker.close)

    def _try(self, tracker: Tracker, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.trackers.remove(tracker)
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{type(tracker).__name__} failed and is left out from here on; the training goes on ({reason})", stacklevel=3)


class TensorBoard:
    """Event files in the run's folder. From its first step on, a resumed run takes the place of what an earlier one wrote there."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "train") from error
        self._open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder), purge_step=step)
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._writer = self._writer or self._open(step)
        for name, value in metrics.items():
            if isinstance(value, Real):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run has told what its own logs tell

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Service:
    """A package with ``init(**settings)`` that takes no step back: what a resumed run plays again, to the same metrics, is not told twice.

    ``<package>.json`` in the run's folder keeps a name for the run there, and the last step that was told.
    """

    def __init__(self, folder: Path, package: str, **settings: Any) -> None:
        try:
            self._init = importlib.import_module(package).init
        except ImportError as error:
            raise MissingExtra(package, package) from error
        self._store, self._file = RunStore.open(folder), f"{package}.json"
        path = folder / self._file
        self.told: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {"id": secrets.token_hex(4), "step": 0}
        self.settings = {"project": "agentgym", "resume": "allow", "config": self._store.config, **settings}
        self._run: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step <= self.told["step"]:
            return
        self._run = self._run or self._init(**self.settings)
        self._run.log(dict(metrics), step=step)
        self.told["step"] = step
        self._store.write(self._file, self.told)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class Wandb(Service):
    """Weights & Biases. ``settings`` are those of ``wandb.init``, such as ``project``, or ``mode: offline``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, "wandb", **{"name": folder.name, "dir": str(folder), **settings})
        self.settings = {"id": self.told["id"], **self.settings}


class Trackio(Service):
    """Hugging Face's trackio. ``settings`` are those of ``trackio.init``, such as ``project`` and ``space_id``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, "trackio", **settings)
        self.settings = {"name": f"{folder.name}-{self.told['id']}", **self.settings}
