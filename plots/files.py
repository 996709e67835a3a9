"""Logs and checkpoints: written whole or not at all, distrusted when read. All errors are OSErrors of one line."""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

MEASURED = ("step", "seed", "accuracy", "greedy_accuracy", "leakage", "kl", "entropy", "response_length")


class Damaged(OSError):
    """A file that is not what it should be."""


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside the file and then renames, so that nobody ever sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def probe(folder: Path) -> None:
    """Raises what write_whole would: better now than after an hour's work."""
    write_whole(file := folder / ".writable", b"")
    file.unlink(missing_ok=True)  # another program may probe at the same moment


@contextlib.contextmanager
def distrust(path: Path) -> Iterator[None]:
    """What is read from a file may be anything, and may fail in any way."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {path}") from error
    except Exception as error:
        raise Damaged(f"{path} is damaged or not of this program: move it away to start anew") from error


def finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def write_log(path: Path, lines: list[dict]) -> None:
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode("utf-8"))


def read_log(path: Path) -> list[dict]:
    """One JSON object per line, at least one; no NaN, no Infinity."""
    with distrust(path), path.open(encoding="utf-8") as file:
        first, *more = [{**json.loads(line, parse_float=finite, parse_constant=finite)} for line in file]
        return [first, *more]


def read_run(path: Path) -> tuple[dict, list[dict]]:
    """A run's log: {"config": {...}}, then at least one record of what was measured."""
    with distrust(path):
        first, *records = read_log(path)
        config, kinds = first["config"], {"mode": str, "task": str, "seed": int, "steps": int}
        numbers = [record[name] for record in records for name in MEASURED]
        fits = [len(records) > 0, *(type(config[name]) is kind for name, kind in kinds.items())]
        fits += [type(number) in (int, float) and math.isfinite(number) for number in numbers]  # True is no number
        if not all(fits) or any(record["mode"] != config["mode"] for record in records):
            raise ValueError
        return config, records


def write_checkpoint(path: Path, state: dict) -> None:
    import torch
    torch.save(state, buffer := io.BytesIO())
    write_whole(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict:
    """Tensors and numbers, on the CPU; weights_only refuses a pickle that would run code."""
    import torch
    with distrust(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on what a damaged file might be
        return {**torch.load(path, map_location="cpu", weights_only=True)}


def set_aside(path: Path) -> None:
    """Renames x.jsonl, if it exists, to the first free of x.old1.jsonl, x.old2.jsonl ...: nothing is ever lost."""
    if path.exists():
        names = (path.with_name(f"{path.stem}.old{n}{path.suffix}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def run_log(out: Path, config: dict) -> Path:
    return out / "runs" / f"{config['task']}-{config['mode']}-s{config['seed']}.jsonl"


def prepare(out: Path, configs: list[dict], go_on: bool) -> list[Path]:
    """The runs' logs. What would fail only after hours of work fails here. Earlier runs are set aside, or resumed."""
    probe(out / "runs")
    logs = [run_log(out, config) for config in configs]
    for log, config in zip(logs, configs):
        if go_on:
            resume(log, config)
        else:  # the checkpoint first, so that none ever stands beside another run's log
            set_aside(log.with_suffix(".pt"))
            set_aside(log)
    return logs


def resume(log: Path, config: dict, student=None, teacher=None) -> tuple[list[dict], dict | None]:
    """The records and checkpoint of a run that was stopped or gets more steps; every other setting must be the same.

    Given the models, the checkpoint must fit them. A run that has no checkpoint starts anew.
    """
    if not (checkpoint := log.with_suffix(".pt")).exists():
        return [], None
    logged, records = read_run(log)
    for name, value in config.items():
        if logged.get(name) != value and not (name == "steps" and logged["steps"] < value):
            made = f"{log} was made with --{name.replace('_', '-')} {logged.get(name)}, not {value}"
            raise OSError(f"{made}: give the same settings, or leave out --resume to start anew")
    saved = read_checkpoint(checkpoint)
    with distrust(checkpoint):
        records = [record for record in records if record["step"] <= saved["step"]]
        if student:
            copy.deepcopy(student).load_state_dict(saved["student"])
            copy.deepcopy(teacher).load_state_dict(saved["teacher"])
            moments = [saved["moments"][n] for n in range(len(saved["moments"]))]
            for weight, state in zip(student.parameters(), moments, strict=bool(saved["step"])):
                weight + state["exp_avg"] + state["exp_avg_sq"].view_as(weight) + state["step"].view(())
    return records, saved


def keep(log: Path, config: dict, records: list[dict], state: dict) -> None:
    """A run's log, and then its checkpoint: after a kill the log may be one evaluation ahead, never behind."""
    write_log(log, [{"config": config}, *records])
    write_checkpoint(log.with_suffix(".pt"), state)


def cached(path: Path, depends: list, model, make: Callable[[], None]) -> None:
    """Fills a model from the file that a fingerprint of all it depends on names; or makes the model and the file."""
    fingerprint = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:12]
    path = path.with_name(f"{path.name}-{fingerprint}.pt")
    if path.exists():
        state = read_checkpoint(path)
        with distrust(path):
            model.load_state_dict(state)
        return
    make()
    try:
        write_checkpoint(path, model.state_dict())
    except OSError as error:
        warnings.warn(f"{error}; going on without a cache", stacklevel=2)
