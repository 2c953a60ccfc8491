"""Which audio the rows of a source may name: a row chooses a file, never a server, a bucket or this machine's files."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foldray import storage
from foldray.data.utterance import Utterance
from foldray.errors import scrubbed


@dataclass(frozen=True)
class AudioPlaces:
    """The places that audio of a source may be in.

    Attributes:
        roots: The corpus and `corpus.audio_root`: their whole buckets, or all local files.
        others: `corpus.audio_places`: folders, or prefixes of buckets.
    """

    roots: Sequence[str]
    others: Sequence[str]

    def checked(self, utterance: Utterance) -> Utterance:
        """The utterance with its audio's URI as the spec reaches it, or with the problem unsafe_path.

        Options of a URI, such as its server, come from the spec: requests are signed with the user's credentials.
        """
        audio = utterance.audio
        if utterance.problem or utterance.entry or not audio or not storage.is_known(audio):
            return utterance
        if (place := self._place_of(audio)) is not None:
            return utterance if storage.is_local(audio) else replace(utterance, audio=_with_options(audio, place))
        here = f"is not in the bucket of the corpus{_its_options(audio)}" if "://" in audio else "is a local file"
        shown = scrubbed(audio.partition("?")[0])
        problem = f"'{shown}' {here}; if you trust it, add its folder to corpus.audio_places"
        return replace(utterance, problem=("unsafe_path", problem))

    def _place_of(self, audio: str) -> str | None:
        """The first place that allows an audio URI."""
        if storage.is_local(audio):
            if any(map(storage.is_local, self.roots)):
                return ""
            path = posixpath.normpath(storage.absolute(audio))
            folders = (storage.absolute(place) for place in self.others if storage.is_local(place))
            return next((folder for folder in folders if _is_below(path, folder)), None)
        bucket, key = _bucket_and_key(audio)
        for place in (*self.roots, *self.others):
            if storage.is_local(place) or _options(audio) not in ("", _options(place)):
                continue
            its_bucket, prefix = _bucket_and_key(place)
            if bucket == its_bucket and (place in self.roots or _is_below(posixpath.normpath(key), prefix)):
                return place
        return None


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = storage.filesystem_path(uri).partition("/")
    return bucket, key.strip("/")


def _options(uri: str) -> str:
    return uri.partition("?")[2]


def _its_options(uri: str) -> str:
    return ", or has other options after '?'" if _options(uri) else ""


def _with_options(uri: str, place: str) -> str:
    options = _options(place)
    return uri.partition("?")[0] + (f"?{options}" if options else "")


def _is_below(path: str, folder: str) -> bool:
    folder = folder.rstrip("/")
    return not folder or path == folder or path.startswith(f"{folder}/")
