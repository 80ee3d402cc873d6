"""A worker of a study: takes trials, trains their folds, and tells what they gave."""

import datetime
import pathlib
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from dpa_jax import console, workdir
from dpa_jax.tuning import anomalies, guard, results, selection, trials
from dpa_jax.tuning import queue as queue_lib
from dpa_jax.tuning import search as search_lib
from dpa_jax.tuning import storage as storage_lib

_POLL = 1.0  # seconds between looks at the trials of other workers


class Worker:
    """One process that works on a study.

    Args:
      config: what every trial starts from.
      search: validated.
      folder: of the study.
      renew: writes the study's report anew.
      visible: whether to show progress.

    Raises:
      DpaError: images cannot be used, or an anomaly is among those trained or tested
        on.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        search: ml_collections.ConfigDict,
        folder: pathlib.Path,
        renew: Callable[[], object],
        visible: bool,
    ):
        self.config, self.search, self.folder = config, search, folder
        self.renew, self.visible = renew, visible
        self.parameters = search_lib.parameters(search, config)
        self.images = trials.Images(search, visible)
        self.drawn = self.check()
        self.seconds: list[float] = []  # of each fold of a trial that was trained here
        self.said = ""

    def check(self) -> np.ndarray:
        """Refuses anomalies that are trained or tested on; returns the drawn ones."""
        normal, pool = self.images(self.config)
        if pool is not None:
            test = guard.test_set(self.config, visible=self.visible)
            told = guard.guard(pool, normal, test)
            anomalies.keep(self.folder / "anomalies.npz", pool, told)
        if pool is None or not len(pool.drawn):
            self.say(
                "No anomalies are drawn, so that trials can be ranked by their "
                "reconstruction loss alone: see report.md for what that is worth."
            )
        return np.zeros(0, np.int64) if pool is None else pool.drawn

    def say(self, text: str) -> None:
        """Prints a line, but not the same twice in a row."""
        if self.visible and text != self.said:
            console.print_line(text)
        self.said = text

    def work_on(self, url: str, name: str, digest: str) -> None:
        """Works until every trial has ended that a database knows of.

        Args:
          url: see `storage.connect`.
          name: of the study in it.
          digest: of what the study is about.
        """
        search = self.search
        study = storage_lib.connect(url, name, bool(len(self.drawn)), search.pruner)
        storage_lib.check_same(study, digest, self.folder)
        plan = search_lib.planned(search, self.parameters)
        self.queue = queue_lib.Queue(study, plan, search.retries, search.seed)
        with self.queue.beating():
            try:
                while True:
                    places = self.queue.look()
                    self.note_dead(places)
                    taken = self.queue.take(
                        self.search.population, self.suggest, self.alike
                    )
                    works = [self.work(*one, places) for one in taken]
                    for group in self.grouped(works):
                        self.group(group)
                    if not taken and all(place.ended for place in places):
                        return
                    if not taken:
                        self.wait(places)
            except BaseException:
                if count := self.queue.hand_back():
                    self.say(f"handed back to the study, unfinished: {count}")
                raise

    # --- taking trials ---

    def suggest(self, trial) -> dict:
        """Lets Optuna choose the values of a trial."""
        return {p.name: p.suggest(trial) for p in self.parameters}

    def alike(self, one: dict, other: dict) -> bool:
        """Says whether trials may have equal shapes, by what is known of them."""
        if len(other) < len(self.parameters):
            return True
        return self.shape(one) == self.shape(other)

    def shape(self, values: dict) -> str:
        """Returns what is equal for trials that can be trained together."""
        return search_lib.shape(self.fold_config(values, 0))

    def fold_config(self, values: dict, fold: int) -> ml_collections.ConfigDict:
        """Returns the config of a fold's run."""
        return search_lib.fold_config(
            self.config, self.search, self.parameters, values, fold
        )

    def work(self, trial, number: int, values: dict, places) -> trials.Work:
        """Returns what is to be done for a trial that was taken."""
        return trials.Work(
            trial,
            number,
            values,
            [self.fold_config(values, k) for k in range(self.search.folds)],
            self.trial_folder(number),
            places[number].deaths,
        )

    def trial_folder(self, number: int) -> pathlib.Path:
        """Returns where a trial is kept."""
        return self.folder / "trials" / f"{number:04d}"

    def grouped(self, works: Sequence[trials.Work]) -> list[list[trials.Work]]:
        """Returns the trials by their shapes."""
        found: dict[str, list[trials.Work]] = {}
        for work in works:
            found.setdefault(self.shape(work.values), []).append(work)
        return list(found.values())

    # --- working on them ---

    def group(self, works: Sequence[trials.Work]) -> None:
        """Trains trials of equal shapes, fold after fold, and ends them."""
        for work in works:
            work.begun = time.monotonic()
            self.say(f"{self.name(work)}: {search_lib.describe(work.values)}")
        for fold in range(self.search.folds):
            going = [work for work in works if self.going(work)]
            if not going:
                break
            new = [work for work in going if not work.scores(fold).exists()]
            begun = time.monotonic()
            trials.train_fold(going, fold, self.images, self.judge)
            if new:
                self.seconds.append((time.monotonic() - begun) / len(new))
            for work in going:
                if self.going(work):
                    self.tell(work, fold)
        for work in works:
            if self.going(work):
                work.end("complete")
            self.end(work)
        self.renew()

    def going(self, work: trials.Work) -> bool:
        """Says whether a trial is still to be worked on, and by this worker."""
        if work.state == "running" and not self.queue.owns(work.trial):
            work.end("lost")
            self.say(f"{self.name(work)}: another worker has taken it over")
        return work.state == "running"

    def judge(self, work: trials.Work, stage, step: int, value: float) -> None:
        """Gives up a trial that does worse than the others did after that stage."""
        if not self.going(work):
            return
        if self.queue.reported(work.trial, value, step):
            work.end("pruned", f"below the median after {stage.name}: {value:.4f}")

    def end(self, work: trials.Work) -> None:
        """Writes how a trial ended, for the report and for other workers."""
        if work.state == "lost":
            self.queue.drop(work.trial)
            return
        # the folder first: what the database calls ended has its file
        workdir.write_json(work.folder / "trial.json", work.told())
        if work.state == "complete":
            self.queue.end(work.trial, self.value(work))
        else:
            self.say(f"{self.name(work)} {work.state}: {work.reason}")
            failed = work.state == "failed"
            self.queue.end(work.trial, reason=work.reason if failed else "")

    def value(self, work: trials.Work) -> float:
        """Returns a complete trial's mean ROC AUC, or its mean held-out loss."""
        folds = [results.read_fold(work.scores(k)) for k in range(self.search.folds)]
        if len(self.drawn):
            return float(selection.fold_aucs(folds, self.drawn).mean())
        return float(np.mean([fold.loss for fold in folds]))

    def note_dead(self, places: Sequence[queue_lib.Place]) -> None:
        """Writes down the trials that too many workers have died over."""
        for number, place in enumerate(places):
            path = self.trial_folder(number) / "trial.json"
            if place.state == "failed" and not path.exists():
                told = {
                    "number": number,
                    "state": "failed",
                    "reason": place.reason,
                    "parameters": {} if place.last is None else place.last.params,
                    "seconds": 0.0,
                    "retries": place.deaths,
                }
                workdir.write_json(path, told)

    # --- what a person sees ---

    def name(self, work: trials.Work) -> str:
        """Names a trial among all."""
        return f"trial {work.number} (of {len(self.queue.plan)})"

    def tell(self, work: trials.Work, fold: int) -> None:
        """Prints what a fold gave, and how long the study may still take."""
        found = results.read_fold(work.scores(fold))
        auc = ""
        if len(self.drawn):
            auc = f"ROC AUC {selection.fold_aucs([found], self.drawn)[0]:.4f}, "
        self.say(
            f"{self.name(work)}, fold {fold + 1} of {self.search.folds}: {auc}held-out "
            f"loss {found.loss:.4f} after {found.steps:,} steps{self.left(fold)}"
        )

    def left(self, fold: int) -> str:
        """Words how long the trials that are left may take."""
        if not self.seconds:
            return ""
        places = self.queue.look()
        running = [place.last for place in places if place.state == "running"]
        workers = {t.user_attrs.get("worker") for t in running if t is not None}
        waiting = sum(not place.ended for place in places) - len(running)
        folds = self.search.folds * waiting / max(1, len(workers))
        mine = len(running) / max(1, len(workers))
        folds += (self.search.folds - fold - 1) * mine
        seconds = round(float(np.mean(self.seconds)) * folds)
        return f"; about {datetime.timedelta(seconds=seconds)} left"

    def wait(self, places: Sequence[queue_lib.Place]) -> None:
        """Waits for other workers, or for what they leave behind."""
        running = [
            f"trial {number} ({place.last.user_attrs.get('worker', 'starting')})"
            for number, place in enumerate(places)
            if place.state == "running" and place.last is not None
        ]
        if running:
            self.say(
                f"waiting for {', '.join(running)}; "
                f"taken over {storage_lib.GRACE} s after its worker dies"
            )
        time.sleep(_POLL)
