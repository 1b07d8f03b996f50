"""What comes from a hub: files of tokenizers and streamed data sets. That it cannot be reached is told in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError
from palimpsa.text.records import Batch, Fields

PROBE_TIMEOUT_S = 10.0
RECORDS_PER_BATCH = 256
_LOCAL_TOKENIZER = "a local tokenizer: tokenizer=PATH of a tokenizer.model or tokenizer.json, or tokenizer=bytes"
_LOCAL_TEXT = "local text: source=files source.files=[PATH], or source=sample"


def hub_files(repository: str, layouts: Sequence[Sequence[str]], revision: str | None) -> tuple[Path, ...] | None:
    """The files of the first layout that a model's repository has, from the local cache where they are there.

    Returns:
        None where the repository has no layout whole.

    Raises:
        ConfigError: the hub cannot be reached, or refuses.
    """
    cached = cached_files(repository, layouts, revision)
    if cached is not None:
        return cached
    from huggingface_hub import HfApi, hf_hub_download

    try:
        # Asked first: a download tries for half a minute to reach a hub that is not there.
        found = HfApi().model_info(repository, revision=revision, timeout=PROBE_TIMEOUT_S)
        there = {one.rfilename for one in found.siblings or ()}
        for layout in layouts:
            if there.issuperset(layout):
                return tuple(Path(hf_hub_download(repository, file, revision=revision)) for file in layout)
    except Exception as error:
        # Of the network, or of the hub: each library on the way has errors of its own.
        raise _unreachable("tokenizer", repository, error, _LOCAL_TOKENIZER) from error
    return None


def cached_files(repository: str, layouts: Sequence[Sequence[str]], revision: str | None) -> tuple[Path, ...] | None:
    """The files of the first layout that the hub's local cache has whole, without a network; None where it has none."""
    from huggingface_hub import try_to_load_from_cache

    for layout in layouts:
        cached = [try_to_load_from_cache(repository, file, revision=revision) for file in layout]
        if all(isinstance(path, str) for path in cached):
            return tuple(Path(str(path)) for path in cached)
    return None


def _unreachable(key: str, repository: str, error: Exception, local: str) -> ConfigError:
    """The one line about a hub that did not give what was asked for."""
    from huggingface_hub import errors

    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(f"{key}: got {repository!r}, which its owners give to those alone who log in; or {local}")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return ConfigError(f"{key}: got {repository!r}, which the hub does not have; expected a name there, or {local}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{key}: got {repository!r} at a revision that the hub does not have ({reason})")
    return ConfigError(
        f"{key}: the hub cannot be reached for {repository!r} ({reason}); expected a network, or {local}"
    )


class HubSource:
    """A data set of the hub, streamed in its own order.

    Args:
        dataset, subset, split, revision: as the hub has them; without a revision the newest, which is then held to.
        fields: the columns.
    """

    def __init__(self, dataset: str, subset: str | None, split: str, revision: str | None, fields: Fields) -> None:
        self.dataset, self.subset, self.split, self.revision = dataset, subset, split, revision
        self.fields = fields

    @property
    def place(self) -> str:
        """What errors and the manifest call it."""
        return "/".join(filter(None, (self.dataset, self.subset, self.split)))

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it, with the revision that was asked for."""
        place = {"dataset": self.dataset, "subset": self.subset, "split": self.split}
        return {"kind": "hub", **place, "revision": self.revision}

    def resolve_revision(self) -> str:
        """The hash of the revision that is asked for, from the hub, within `PROBE_TIMEOUT_S`.

        Raises:
            ConfigError: the hub cannot be reached, or does not have it.
        """
        from huggingface_hub import HfApi

        try:
            found = HfApi().dataset_info(self.dataset, revision=self.revision, timeout=PROBE_TIMEOUT_S)
        except Exception as error:
            # As above: whatever it is, it is told with what to do instead.
            raise _unreachable("source.dataset", self.dataset, error, _LOCAL_TEXT) from error
        return str(found.sha)

    def batches(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """The records, `RECORDS_PER_BATCH` at a time, from where an earlier batch ended.

        Args:
            state: `after` of the batch before; None: from the start.

        Raises:
            ConfigError: a column is missing, or the hub is lost on the way.
        """
        stream = self._open()
        number = 0
        if state is not None:
            stream.load_state_dict(state["stream"])
            number = state["records"]
        columns = [self.fields.text, *([self.fields.licence] if self.fields.licence else [])]
        batches = iter(stream.iter(batch_size=RECORDS_PER_BATCH))
        while True:
            try:
                records = next(batches, None)
            except Exception as error:
                # Of the network, of which each library on the way has errors of its own.
                reason = str(error) or type(error).__name__
                raise ConfigError(
                    f"source.dataset: {self.place} was lost after {number} records ({reason}); the same command goes on"
                ) from error
            if records is None:
                return
            for column in columns:
                if column not in records:
                    found = ", ".join(records)
                    raise ConfigError(f"source: {self.place} has no column {column!r}, expected one of {found}")
            first, number = number + 1, number + len(records[self.fields.text])
            yield Batch(
                place=self.place,
                unit="record",
                first=first,
                texts=records[self.fields.text],
                licences=records[self.fields.licence] if self.fields.licence else None,
                after={"records": number, "stream": stream.state_dict()},
            )

    def _open(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True)
        except ValueError as error:
            # An unknown subset or split, with those that there are.
            reason = " ".join(str(error).split())
            raise ConfigError(f"source: got {self.place!r}, expected what the hub has: {reason}") from error
        except Exception as error:
            # As above: whatever it is, it is told with what to do instead.
            raise _unreachable("source.dataset", self.dataset, error, _LOCAL_TEXT) from error
