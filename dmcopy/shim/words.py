"""dmsetup's words as getopt_long(3) reads them: options anywhere, by their beginnings, in clusters.

Every option may go with every verb, and means nothing to most.
"""

from __future__ import annotations

_FLAGS = (
    "addnodeoncreate addnodeonresume alldevices allprograms allregions area checks clear columns "
    "concise deferred filemap force foreground group help histogram inactive nameprefixes noflush "
    "nogroup noheadings nolockfs nomonitor noopencount nosuffix notable notimesuffix noudevrules "
    "noudevsync precise raw readonly region relative retry rows segments setuuid showkeys tree "
    "unbuffered unquoted verbose verifyudev version yes"
)
_VALUES = (
    "alias areas areasize bounds count exec follow gid groupid interval length major manglename "
    "minor mode options programid readahead regionid regions select separator sort start table "
    "target udevcookie uid units userdata uuid"
)
FLAGS, VALUES = _FLAGS.split(), _VALUES.split()
LETTERS = {
    "c": "columns", "C": "columns", "f": "force", "G": "gid", "h": "help", "j": "major",
    "m": "minor", "M": "mode", "n": "notable", "o": "options", "O": "sort", "r": "readonly",
    "S": "select", "u": "uuid", "U": "uid", "v": "verbose", "y": "yes",
}  # fmt: skip
_INCOMPATIBLE = (("table", "notable"), ("addnodeonresume", "addnodeoncreate"))


class WordsError(Exception):
    """Words that dmsetup does not take; the text is what it says of them."""


class CommandLine:
    """A command line: the options by their long names, then the verb and its operands.

    `options` holds the value of each that takes one, of the others how often they were given.
    """

    def __init__(self, words: list[str]) -> None:
        self.options: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.operands: list[str] = []
        left = list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                self.operands += left
                break
            if word.startswith("--"):
                self._long(word[2:], left)
            elif word.startswith("-") and word != "-":
                self._cluster(word[1:], left)
            else:
                self.operands.append(word)
        self._check()

    def __contains__(self, name: str) -> bool:
        return name in self.counts

    def value(self, name: str) -> str | None:
        """Return the value of an option, None where it was not given."""
        return self.options.get(name)

    def number(self, name: str) -> int:
        """Return the value of an option as atoi(3) reads it."""
        return atoi(self.options.get(name, ""))

    def _long(self, word: str, left: list[str]) -> None:
        given, equals, value = word.partition("=")
        found = [name for name in (*FLAGS, *VALUES) if name.startswith(given)]
        name = given if given in found else found[0] if len(found) == 1 else ""
        if not found:
            raise WordsError(f"dmsetup: unrecognized option '--{given}'")
        if not name:
            named = " ".join(f"'--{one}'" for one in found)
            raise WordsError(f"dmsetup: option '--{given}' is ambiguous; possibilities: {named}")
        if name in FLAGS:
            if equals:
                raise WordsError(f"dmsetup: option '--{name}' doesn't allow an argument")
            self._note(name)
        elif equals or left:
            self._note(name, value if equals else left.pop(0))
        else:
            raise WordsError(f"dmsetup: option '--{name}' requires an argument")

    def _cluster(self, letters: str, left: list[str]) -> None:
        while letters:
            letter, letters = letters[0], letters[1:]
            name = LETTERS.get(letter)
            if name is None:
                raise WordsError(f"dmsetup: invalid option -- '{letter}'")
            if name in FLAGS:
                self._note(name)
                continue
            if not letters and not left:
                raise WordsError(f"dmsetup: option requires an argument -- '{letter}'")
            self._note(name, letters or left.pop(0))
            return

    def _note(self, name: str, value: str | None = None) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        if value is not None:
            self.options[name] = value

    def _check(self) -> None:
        if "count" in self and self.number("count") < 0:
            raise WordsError("Count must be zero or greater.")
        if "interval" in self and self.number("interval") <= 0:
            raise WordsError("Interval must be a positive integer.")
        if "mode" in self and not _octal(self.options["mode"]):
            raise WordsError(f"Invalid argument for --mode: {self.options['mode']}. ")
        if self.number("readahead") < -1:
            number = self.number("readahead")
            raise WordsError(f"Negative read ahead value ({number}) is not understood.")
        if self.options.get("manglename", "auto").lower() not in ("none", "auto", "hex"):
            raise WordsError("Unknown name mangling mode.")
        if ("major" in self) != ("minor" in self):
            raise WordsError("Please specify both major number and minor number.")
        for one, other in _INCOMPATIBLE:
            if one in self and other in self:
                raise WordsError(f"--{one} and --{other} are incompatible.")


def atoi(text: str) -> int:
    """Return the number at the beginning of a text, 0 where there is none; see atoi(3).

    As glibc's, it ends at a long's end, and keeps the lower 32 bits of that.
    """
    text = text.lstrip()
    sign, digits = 1, text
    if text[:1] in ("+", "-"):
        sign, digits = (-1 if text[0] == "-" else 1), text[1:]
    length = 0
    while length < len(digits) and "0" <= digits[length] <= "9":
        length += 1
    value = sign * strtoull(digits[:length] or "0")
    return (max(-(1 << 63), min(value, (1 << 63) - 1)) + (1 << 31)) % (1 << 32) - (1 << 31)


def strtoull(digits: str) -> int:
    """Return the number that decimal digits are, 2^64-1 for a larger one; see strtoull(3)."""
    digits = digits.lstrip("0") or "0"
    return min(int(digits), (1 << 64) - 1) if len(digits) <= 20 else (1 << 64) - 1


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        return 0
