"""n-gram language models: ARPA files, checked here and then read by KenLM."""

import gzip
import hashlib
import math
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.runtime.extras import check_extra

MAX_BYTES = 2**32
"""Most bytes of an ARPA file, also once it is unpacked."""
MAX_LINE_BYTES = 2**16
MAX_WORDS = 2**22
MAX_ORDER = 6
"""The highest order that KenLM is built for; the lowest is 2."""

UNKNOWN = "<unk>"
MARKS = ("<s>", "</s>", UNKNOWN, "<UNK>")
LEAST = -10.0
"""log10 of the least probability of a word. Without `<unk>` in the file, an unknown word has it too."""

_CHUNK = 2**20
_BINARY = b"mmap lm http://kheafield.com/code"
_GZIP = b"\x1f\x8b"
_COUNT = re.compile(rb"ngram (\d{1,2})=(\d{1,12})")


class _Readable(Protocol):
    def readline(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class NgramModel:
    """A language model over words.

    Attributes:
        words: The words of its unigrams, without the marks of sentences and of unknown words.
        digest: The first eight hex digits of the file's SHA-256, as `sha256sum` prints them.
    """

    model: Any
    kenlm: Any
    words: frozenset[str]
    digest: str

    def start(self) -> Any:
        """The state at the start of a sentence."""
        state = self.kenlm.State()
        self.model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """The natural logarithm of P(word | state), and the state after it. `</s>` ends a sentence."""
        after = self.kenlm.State()
        log10 = self.model.BaseScore(state, word, after)
        return min(max(LEAST, log10), 0.0) * math.log(10), after  # in this order: nan becomes LEAST


def read_arpa(uri: str) -> NgramModel:
    """Read an ARPA file, plain or compressed by gzip, from disk or a bucket.

    Args:
        uri: The file. Its header, its size and its number of lines are checked before KenLM reads a copy of it.
            KenLM's own binaries are refused: KenLM maps them into memory and trusts every offset in them.

    Raises:
        UserError: The file does not exist or is not such a model, or the extra `lm` is not installed.

    Example:
        >>> model = read_arpa("an4.arpa")
        >>> model.score(model.start(), "ENTER")[0]
        -1.8021
    """
    check_extra("lm", "kenlm", where="--lm", what="an n-gram")
    import kenlm

    quiet = kenlm.Config()
    quiet.arpa_complain, quiet.show_progress = kenlm.ARPALoadComplain.NONE, False
    with tempfile.TemporaryDirectory() as folder:
        raw, checked = Path(folder, "raw"), Path(folder, "checked")
        digest = _copy(uri, raw)
        with raw.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
        with gzip.open(raw) if packed else raw.open("rb") as source, checked.open("wb") as target:
            words = _check(_lines(source, uri), target, uri)
        try:
            return NgramModel(kenlm.Model(str(checked), quiet), kenlm, words, digest)
        except OSError as error:
            raise UserError(uri, f"is not an ARPA file that KenLM reads ({_reason(error)})") from None


def _reason(error: OSError) -> str:
    """The first sentence of what KenLM says, without its own file names and conditions."""
    said = " ".join(str(error).split()).partition(" threw ")[2]
    return (re.split(r"'\. |Exception\. ", said)[-1].partition(". ")[0] or type(error).__name__)[:200]


def _copy(uri: str, target: Path) -> str:
    """Copy a file of at most MAX_BYTES; return its digest."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as copy:
        for chunk in _chunks(uri):
            size += len(chunk)
            if size > MAX_BYTES:
                raise UserError(uri, f"has over {MAX_BYTES:,} bytes; prune the n-gram")
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()[:8]


def _chunks(uri: str) -> Iterator[bytes]:
    """The bytes of a file. Apart from the copy, whose disk may be full: that is no error of this file."""
    try:
        with storage.open_file(uri) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except FileNotFoundError:
        raise UserError("--lm", f"{uri} does not exist") from None
    except OSError as error:
        raise UserError("--lm", f"{uri} can't be read ({error.strerror or one_line(error)})") from None


def _lines(source: _Readable, uri: str) -> Iterator[bytes]:
    """The lines of a model without their ends. Raises UserError for one too long, and for too many bytes."""
    size = 0
    try:
        while line := source.readline(MAX_LINE_BYTES + 1):
            size += len(line)
            if not size - len(line) and line.startswith(_BINARY):
                fix = "KenLM would trust its offsets unchecked; give the ARPA file that it was built from"
                raise UserError(uri, f"is a KenLM binary: {fix}")
            if len(line) > MAX_LINE_BYTES:
                raise UserError(uri, f"is not an ARPA file (a line has over {MAX_LINE_BYTES:,} bytes)")
            if size > MAX_BYTES:
                raise UserError(uri, f"unpacks to over {MAX_BYTES:,} bytes; prune the n-gram")
            yield line.rstrip(b"\r\n")
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(uri, f"is damaged ({one_line(error)}); copy it again") from None


def _check(lines: Iterator[bytes], target: IO[bytes], uri: str) -> frozenset[str]:
    """Copy a model of which every section has as many lines as the header says; return its words.

    A model without `<unk>` gets one: KenLM would take 1e-100 for its probability and say so on stderr.
    """
    counts = _read_counts(lines, uri)
    unigrams = list(_section(lines, 1, counts[0], uri))
    words = [line.split()[1].decode() for line in unigrams]
    if not {UNKNOWN, "<UNK>"} & set(words):
        unigrams.append(b"%.1f\t%s" % (LEAST, UNKNOWN.encode()))
    target.write(b"\\data\\\nngram 1=%d\n" % len(unigrams))
    target.writelines(b"ngram %d=%d\n" % (order, count) for order, count in enumerate(counts[1:], start=2))
    target.write(b"\n\\1-grams:\n")
    target.writelines(line + b"\n" for line in unigrams)
    for order, count in enumerate(counts[1:], start=2):
        target.write(b"\n\\%d-grams:\n" % order)
        target.writelines(line + b"\n" for line in _section(lines, order, count, uri))
    target.write(b"\n\\end\\\n")
    if _next_line(lines) != b"\\end\\":
        raise UserError(uri, r"is not an ARPA file (there is no \end\ after the last n-gram: it may be cut off)")
    return frozenset(words) - {*MARKS}


def _read_counts(lines: Iterator[bytes], uri: str) -> list[int]:
    """The number of n-grams of each order, from the header."""
    if (first := _next_line(lines)) != b"\\data\\":
        raise UserError(uri, rf"is not an ARPA file (it begins with {first[:20]!r}, not with \data\)")
    counts: list[int] = []
    while found := _COUNT.fullmatch(next(lines, b"").strip()):
        if int(found[1]) != len(counts) + 1:
            raise UserError(uri, f"is not an ARPA file (order {int(found[1])} follows {len(counts)} in its header)")
        counts.append(int(found[2]))
    if not 2 <= len(counts) <= MAX_ORDER:
        raise UserError(uri, f"has n-grams of {len(counts)} orders; KenLM reads 2 to {MAX_ORDER}")
    if counts[0] > MAX_WORDS:
        raise UserError(uri, f"has {counts[0]:,} words, over {MAX_WORDS:,}; prune its vocabulary")
    return counts


def _section(lines: Iterator[bytes], order: int, count: int, uri: str) -> Iterator[bytes]:
    """The n-grams of one order, exactly `count` of them."""
    if (title := _next_line(lines)) != b"\\%d-grams:" % order:
        raise UserError(uri, rf"is not an ARPA file ({title[:20]!r} where \{order}-grams: should be)")
    for number in range(1, count + 1):
        line = next(lines, b"")
        if line.count(b"\0") or not order + 1 <= len(line.split()) <= order + 2:
            raise UserError(uri, f"is not an ARPA file ({order}-gram {number} of {count}: {line[:40]!r})")
        try:
            line.decode()
        except UnicodeDecodeError:
            problem = f"has the {order}-gram {line[:40]!r}, which is not UTF-8"
            raise UserError(uri, f"{problem}; convert the file with iconv") from None
        yield line


def _next_line(lines: Iterator[bytes]) -> bytes:
    """The next line that is not blank; empty at the end."""
    return next((line.strip() for line in lines if line.strip()), b"")
