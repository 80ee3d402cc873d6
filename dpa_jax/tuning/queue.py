"""Which trials of a study are left, shared by its workers through Optuna's storage.

A trial of the plan is one or several of Optuna's: a worker that died leaves one behind,
and the trial is entered again. Every worker enters what it finds missing, so that none
has to be the first; of what two have entered at once, the earlier counts.
"""

import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa_jax import console
from dpa_jax.tuning import storage as storage_lib

if TYPE_CHECKING:
    import optuna


@dataclasses.dataclass(frozen=True)
class Place:
    """How far a trial of the plan has come.

    Attributes:
      state: waiting, running, complete, pruned, failed, or lost: not in the queue.
      reason: of a failure.
      deaths: how many workers died over it.
      last: Optuna's trial that says so, None if there is none yet.
    """

    state: str
    reason: str = ""
    deaths: int = 0
    last: "optuna.trial.FrozenTrial | None" = None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("complete", "pruned", "failed")


def places(
    trials: "Sequence[optuna.trial.FrozenTrial]", count: int, retries: int
) -> list[Place]:
    """Returns how far each trial of a plan of `count` has come.

    Args:
      trials: all of Optuna's, by number.
      count: of the plan.
      retries: deaths that a trial is allowed.
    """
    found = [Place("lost")] * count
    for trial in trials:
        number = trial.user_attrs["planned"]
        if number >= count or found[number].state != "lost":
            continue
        told, state = trial.user_attrs, trial.state.name.lower()
        deaths, reason = found[number].deaths, ""
        if state == "fail":
            state, reason = ("failed" if "reason" in told else "lost"), ""
            if state == "failed":
                reason = told["reason"]
            elif "surplus" in told:
                continue
            elif "handed_back" not in told:
                deaths += 1
                if deaths > retries:
                    state = "failed"
                    reason = f"its worker died, {deaths} times in all"
        found[number] = Place(state, reason, deaths, trial)
    return found


class Queue:
    """The trials of a study that are left.

    Args:
      study: see `storage.connect`.
      plan: the values of each trial, empty where they are chosen when its turn comes.
      retries: deaths that a trial is allowed.
      seed: of what is chosen.
    """

    def __init__(self, study, plan: Sequence[dict], retries: int, seed: int):
        self.study, self.plan, self.retries, self.seed = study, plan, retries, seed
        self._storage = study._storage
        self._mine: dict[int, Any] = {}  # Optuna's id: its trial
        self._seen: set[int] = set()

    # --- what there is ---

    def look(self) -> list[Place]:
        """Enters what is missing or was left by the dead; returns all places."""
        import optuna

        for identity in list(self._mine):
            self._storage.record_heartbeat(identity)
        with storage_lib.quiet():
            optuna.storages.fail_stale_trials(self.study)
        found = places(self._trials(), len(self.plan), self.retries)
        for number, place in enumerate(found):
            if place.state == "lost":
                self._enter(number, place)
            elif place.state == "running" and place.last is not None:
                self._watch(place.last)
        return places(self._trials(), len(self.plan), self.retries)

    def _trials(self):
        return self.study.get_trials(deepcopy=False)

    def _enter(self, number: int, place: Place) -> None:
        import optuna

        values, last = self.plan[number], place.last
        self.study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.WAITING,
                # of one that is tried again, what was chosen and reported stays
                params=last.params if last else {},
                distributions=last.distributions if last else {},
                intermediate_values=last.intermediate_values if last else {},
                user_attrs={"planned": number},
                system_attrs={"fixed_params": values} if values else {},
            )
        )

    def _watch(self, trial) -> None:
        """Starts the clock of a worker that may have died before it first beat."""
        identity = trial._trial_id
        if identity not in self._seen and "worker" not in trial.user_attrs:
            self._storage.record_heartbeat(identity)
        self._seen.add(identity)

    # --- taking trials, and ending them ---

    def take(
        self,
        count: int,
        suggest: Callable[[Any], dict],
        alike: Callable[[dict, dict], bool],
    ) -> list[tuple[Any, int, dict]]:
        """Takes up to `count` waiting trials.

        Args:
          count: at least 1.
          suggest: chooses the values of a trial of Optuna's.
          alike: whether two trials may be taken together, by what is known of their
            values: empty if nothing is.

        Returns:
          Of each Optuna's trial, its number in the plan, and its values.
        """
        taken: list[tuple[Any, int, dict]] = []
        for waiting in self._trials():
            if len(taken) == count:
                break
            number = waiting.user_attrs["planned"]
            if waiting.state.name != "WAITING" or number >= len(self.plan):
                continue
            known = {**self.plan[number], **waiting.params}
            if taken and not alike(taken[0][2], known):
                continue
            trial = self._pop(waiting._trial_id, number)
            if trial is not None:
                taken.append((trial, number, suggest(trial)))
        return taken

    def _pop(self, identity: int, number: int):
        import optuna

        running = optuna.trial.TrialState.RUNNING
        try:
            if not self._storage.set_trial_state_values(identity, state=running):
                return None
        except optuna.exceptions.UpdateFinishedTrialError:
            return None
        self._storage.record_heartbeat(identity)
        self._storage.set_trial_user_attr(identity, "worker", _worker())
        place = places(self._trials(), len(self.plan), self.retries)[number]
        if place.last is None or place.last._trial_id != identity:
            self._close(identity, "surplus")
            return None
        seed = np.random.SeedSequence((self.seed, number)).generate_state(1)[0]
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        trial = optuna.Trial(self.study, identity)
        self._mine[identity] = trial
        return trial

    def owns(self, trial) -> bool:
        """Says whether a trial that was taken is still this worker's."""
        return self._storage.get_trial(trial._trial_id).state.name == "RUNNING"

    def end(self, trial, value: float | None = None, reason: str = "") -> None:
        """Ends a trial: complete with a value, failed with a reason, else pruned."""
        import optuna

        state = optuna.trial.TrialState
        identity = trial._trial_id
        if reason:
            self._close(identity, "reason", reason)
        elif value is None:
            self.study.tell(trial, state=state.PRUNED, skip_if_finished=True)
        else:
            self.study.tell(trial, value, skip_if_finished=True)
        self._mine.pop(identity, None)

    def hand_back(self) -> int:
        """Enters again what was taken and not ended; returns how many."""
        count = 0
        for identity, trial in list(self._mine.items()):
            if self.owns(trial):
                self._close(identity, "handed_back")
                count += 1
            del self._mine[identity]
        self.look()
        return count

    def reported(self, trial, value: float, step: int) -> bool:
        """Notes a trial's value after a stage; says whether it is below the others'."""
        # one that is tried again may come here twice
        if step not in self._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, step)
        return trial.should_prune()

    def drop(self, trial) -> None:
        """Forgets a trial that another worker has taken over."""
        self._mine.pop(trial._trial_id, None)

    def _close(self, identity: int, name: str, value: Any = True) -> None:
        import optuna

        failed = optuna.trial.TrialState.FAIL
        # another worker may have declared this one dead at this moment
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # the attribute first: a failure without one is a death
            self._storage.set_trial_user_attr(identity, name, value)
            self._storage.set_trial_state_values(identity, state=failed)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Tells other workers, as long as the body lasts, that this one lives."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(storage_lib.INTERVAL):
                for identity in list(self._mine):
                    try:
                        self._storage.record_heartbeat(identity)
                    except Exception as error:  # of whichever database; the next may do
                        console.print_line(f"no heartbeat could be recorded: {error}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _worker() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
