"""The trials of a study in Optuna's storage, shared by workers that may be killed.

Optuna's heartbeats notice a worker that died and enter its trial again. A lock on the
study's folder, which the kernel takes from a process that dies, closes what they leave
open: two workers may take one trial of an SQLite database, and one may die between a
trial's start and its first heartbeat, or its failure and its being entered again.
"""

import contextlib
import copy
import fcntl
import pathlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, Trial, TrialState

from dpa_jax import console, errors
from dpa_jax.tuning.search import Search

INTERVAL, GRACE = 5, 20  # seconds between heartbeats; without one, a worker is dead
STARTUP = 5  # complete trials before the median gives up any
_DIED, _OPEN = "too many workers died of it", ("waiting", "running")


class Queue:
    """The trials of a study that are left.

    Args:
      folder: of the study.
      url: of the database, see `connect`.
      search: of which the plan and the options count.
      identity: what the study is about, by name; a database's other one is refused.
      maximize: whether a larger value is better.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        url: str,
        search: Search,
        identity: Mapping[str, Any],
        maximize: bool,
    ):
        self._folder, self._options = folder, search.options
        self._plan, self._mine = search.plan(), dict[int, Trial]()  # by number
        median, none = optuna.pruners.MedianPruner(STARTUP), optuna.pruners.NopPruner()
        with self._locked(), _quiet():
            self._retry = optuna.storages.RetryHeartbeatStaleTrialCallback(
                search.options.retries, inherit_intermediate_values=True
            )
            name, self._storage = connect(folder, url, self._retry)
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize" if maximize else "minimize",
                pruner=median if search.options.pruner == "median" else none,
                load_if_exists=True,
            )
            if not (self.study.user_attrs or self.study.get_trials(deepcopy=False)):
                self.study.set_user_attr("identity", identity)
            before = self.study.user_attrs.get("identity", {})
            different = [
                f"{name} was {before.get(name)!r}, is {identity.get(name)!r}"
                for name in {**before, **identity}
                if before.get(name) != identity.get(name)
            ]
            if different:
                raise errors.UsageError(
                    f"{folder} belongs to another study: {'; '.join(different)}. Give "
                    "another --workdir, or the same values"
                )
            trials = max(len(self._plan), self.study.user_attrs.get("trials", 0))
            self.study.set_user_attr("trials", trials)
            self._plan += [{}] * (trials - len(self._plan))
        self._id = self._storage.get_study_id_from_name(name)

    def take(self) -> Trial | None:
        """Takes the next trial of the plan, None if all have begun.

        Before it come those of workers that died, unless too many have died of them.
        """
        with self._locked(), _quiet():
            optuna.storages.fail_stale_trials(self.study)
            known = latest(self.study)
            for trial in known.values():
                taken = trial.user_attrs.get("taken") == trial.number
                if trial.state == TrialState.RUNNING and not taken:
                    # under the lock: its worker has died while it took it
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    trial = self._current(trial.number)
                again = copy.deepcopy(trial)
                if again.user_attrs.pop("interrupted", False):  # which is no failure
                    again.state, again.datetime_complete = TrialState.WAITING, None
                    self.study.add_trial(again)
                elif state(trial) == ("failed", _DIED):
                    self._retry(self.study, again)
            waiting = self.study.get_trials(False, states=(TrialState.WAITING,))
            index = waiting[0].user_attrs["index"] if waiting else len(known)
            if index == len(self._plan):
                return None
            if not waiting:
                self.study.enqueue_trial(self._plan[index], {"index": index})
            # the same values, whichever worker takes the trial
            seed = np.random.SeedSequence((self._options.seed, index))
            tpe = self._options.sampler == "tpe"  # a grid's values are entered
            made = optuna.samplers.TPESampler if tpe else optuna.samplers.RandomSampler
            self.study.sampler = made(seed=int(seed.generate_state(1)[0]))
            trial = self.study.ask()
            self._beat(trial.number)
            trial.set_user_attr("taken", trial.number)
        self._mine[trial.number] = trial
        return trial

    def owns(self, trial: Trial) -> bool:
        """Returns whether a trial that was taken is still this worker's."""
        return self._current(trial.number).state == TrialState.RUNNING

    def goes_on(self, trial: Trial, step: int, value: float) -> bool:
        """Reports a trial's value after a stage; returns whether to go on with it."""
        if not self.owns(trial):
            return False
        # one that is tried again may come here twice
        if step not in self._current(trial.number).intermediate_values:
            trial.report(value, step)
        return not trial.should_prune()

    def end(self, trial: Trial, value: float | None = None, reason: str = "") -> None:
        """Ends a trial, if it is still ours: complete, failed with a reason, pruned."""
        del self._mine[trial.number]
        if self.owns(trial):
            if reason:
                trial.set_user_attr("reason", reason)
            none = TrialState.FAIL if reason else TrialState.PRUNED
            self.study.tell(trial, value, none if value is None else None)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Records heartbeats of trials taken, and in the end releases what is left."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(INTERVAL):
                for number in list(self._mine):
                    try:
                        self._beat(number)
                    except Exception as error:  # of whichever database: the next may do
                        console.print_line(f"no heartbeat could be recorded: {error}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for trial in filter(self.owns, self._mine.values()):
                trial.set_user_attr("interrupted", True)
                self.study.tell(trial, state=TrialState.FAIL)

    def _current(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _beat(self, number: int) -> None:
        find = self._storage.get_trial_id_from_study_id_trial_number
        self._storage.record_heartbeat(find(self._id, number))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def latest(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Returns for each trial of the plan the last of Optuna's that stands for it."""
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs["index"]: trial for trial in trials}


def state(trial: FrozenTrial) -> tuple[str, str]:
    """Returns waiting, running, complete, pruned or failed; and why it failed."""
    if "interrupted" in trial.user_attrs:
        return "waiting", ""
    if trial.state != TrialState.FAIL:
        return trial.state.name.lower(), ""
    return "failed", trial.user_attrs.get("reason", _DIED)


def left(study: optuna.Study) -> int:
    """Returns how many trials of a study have not ended."""
    states = [state(trial)[0] for trial in latest(study).values()]
    return study.user_attrs["trials"] - len(states) + sum(s in _OPEN for s in states)


def connect(
    folder: pathlib.Path, url: str = "", retry: Any = None
) -> tuple[str, optuna.storages.RDBStorage]:
    """Returns a study's name in a database, and that: a file in its folder, or URL."""
    # a connection for each transaction, so that none stays open in the end
    options: dict[str, Any] = {"poolclass": sqlalchemy.NullPool}
    if not url:
        options["connect_args"] = {"timeout": 60}
    with _quiet():
        return folder.resolve().name if url else "study", optuna.storages.RDBStorage(
            url or f"sqlite:///{(folder / 'study.db').resolve()}",
            engine_kwargs=options,
            heartbeat_interval=INTERVAL,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=retry,
        )


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Turns what a database raises in the body into a DpaError."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # our own lines say it all
    broken = (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError)
    try:
        yield
    except (ImportError, *broken) as error:  # of the driver, or of the database
        cause = error.__cause__ or error  # Optuna's own words hide the database's
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise errors.DpaError(f"the database cannot be used: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out that heartbeats are experimental, and are meant for `optimize`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")
        yield
