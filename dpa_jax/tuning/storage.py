"""The database that the workers of a study share."""

import contextlib
import pathlib
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dpa_jax import errors

if TYPE_CHECKING:
    import optuna

INTERVAL, GRACE = 5, 20  # seconds between heartbeats; without one, a worker is dead
FILE = "study.db"
STARTUP = 5  # complete trials before the median says anything
_TRIES = 20  # at making tables that another worker is making


def connect(url: str, name: str, maximize: bool, pruner: str) -> "optuna.Study":
    """Opens a study in a database, or begins it.

    Args:
      url: as SQLAlchemy takes it, such as `sqlite:///FILE` or `postgresql://HOST/NAME`.
      name: of the study.
      maximize: whether a larger value is better.
      pruner: median or none.

    Raises:
      DpaError: the database cannot be used.
    """
    import optuna
    import sqlalchemy

    sqlite = url.startswith("sqlite")
    options: dict = {}
    if sqlite:
        # a connection for each transaction, so that none stays open in the end
        options = {"connect_args": {"timeout": 60}, "poolclass": sqlalchemy.NullPool}
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(STARTUP),
        "none": optuna.pruners.NopPruner,
    }
    for last in (*[False] * (_TRIES - 1), True):
        try:
            with quiet():
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=INTERVAL,
                    grace_period=GRACE,
                )
            if sqlite:
                _serialize(storage.engine)
            return optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize" if maximize else "minimize",
                pruner=pruners[pruner](),
                load_if_exists=True,
            )
        except ImportError as error:
            raise errors.DpaError(
                f"--storage={_without_password(url)} needs the database's driver for "
                f"SQLAlchemy: {error.__cause__ or error} (for PostgreSQL "
                "pip install 'psycopg[binary]')"
            ) from None
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            # another worker may be making the tables at this moment
            if last or isinstance(error, sqlalchemy.exc.ArgumentError):
                raise errors.DpaError(
                    f"the study's database {_without_password(url)} cannot be used: "
                    f"{_first_line(error)}"
                ) from None
            time.sleep(0.2)
    raise AssertionError("the last try returns or raises")


def require_optuna() -> None:
    """Refuses to go on without Optuna; silences it, as our own lines say it all."""
    try:
        import optuna
    except ImportError:
        raise errors.DpaError(
            "tune needs Optuna: pip install 'dpa_jax[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leaves out that Optuna's heartbeats may change in a later version."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _serialize(engine) -> None:
    """Lets one transaction of SQLite's begin when another has ended.

    By default one that reads and then writes can find that another has written in
    between, and two workers take the same trial.
    """
    import sqlalchemy

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection, _):
        connection.isolation_level = None  # pysqlite begins no transaction by itself

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _without_password(url: str) -> str:
    import sqlalchemy

    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url.partition(":")[0] + ":..."


def default_url(folder: pathlib.Path) -> str:
    """Returns the database that a study keeps in its folder."""
    return f"sqlite:///{(folder / FILE).resolve()}"


def check_same(study: "optuna.Study", digest: str, folder: pathlib.Path) -> None:
    """Refuses a database and a folder that are not of the same study.

    Args:
      study: in the database.
      digest: of what this study is about; noted there if it is new.
      folder: where the trials are kept.

    Raises:
      DpaError: the study in the database is about something else, or trials have
        ended in one and not in the other.
    """
    trials = study.get_trials(deepcopy=False)
    known = study.user_attrs.get("digest")
    if known is None and not trials:
        study.set_user_attr("digest", digest)
    elif known != digest:
        raise errors.DpaError(
            f"the database has another study by the name of {study.study_name}: it is "
            "the folder's, so give --workdir another name"
        )
    ended = {
        trial.user_attrs["planned"]
        for trial in trials
        if trial.state.name in ("COMPLETE", "PRUNED")
    }
    kept = {int(path.parent.name) for path in folder.glob("trials/*/trial.json")}
    if ended - kept:
        raise errors.DpaError(
            f"trial {min(ended - kept)} of the study {study.study_name} has ended, but "
            f"{folder} does not hold it: give the --workdir that the study began with"
        )
    if kept and not trials:
        raise errors.DpaError(
            f"{folder} holds trials of which the database knows none: give the "
            "--storage that the study began with"
        )


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns what a database raises in the body into one error that names it."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
    ) as error:
        raise errors.DpaError(
            f"the study's database {_without_password(url)} cannot be used: "
            f"{_first_line(error)}. What was trained is kept; the same command goes on"
        ) from error


def _first_line(error: Exception) -> str:
    # Optuna's words for an error of the database hide the database's own
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
