"""Splitting a shell line at its pipes, as a POSIX shell reads it (POSIX.1-2017, XCU 2.2 to 2.10).

Only `|` and `|&` that stand at the top of the line are pipes of the pipeline. All that may hide one
is read past: quotes, escapes, comments, `$(...)`, `$((...))`, `${...}`, backquotes, subshells,
groups and compound commands (`while ... done`, `if ... fi`, `case ... esac`), redirections (`>|`),
and `||`.

What cannot be split is refused with its place, never guessed at: lists beside a pipe (`A | B ; C`
would need one shell for both), here-documents, and what is not closed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_OPENERS: Final = {
    "if": "fi",
    "while": "done",
    "until": "done",
    "for": "done",
    "case": "esac",
    "{": "}",
}
_CLOSERS: Final = frozenset(_OPENERS.values())
_BEFORE_COMMAND: Final = frozenset({"then", "elif", "else", "do", "!"})
_OPERATORS: Final = frozenset("|&;()<>\n")
_REDIRECTIONS: Final = ("<<<", ">>", ">|", ">&", "<>", "<&", ">", "<")
_BLANK: Final = frozenset(" \t")


class LineError(Exception):
    """The line cannot be split.

    Attributes:
        column: where in the line, from 1.
        reason: what is wrong there, and what to write instead.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"column {position + 1}: {reason}")
        self.column = position + 1
        self.reason = reason


class Part(NamedTuple):
    """One command of a pipeline, as text for `sh -c`."""

    text: str
    errors_too: bool
    """Its standard error goes into the pipe as well: `|&` follows."""


class Pipeline(NamedTuple):
    """A line, split."""

    parts: list[Part]
    negated: bool
    """The line begins with `!`: success and failure are exchanged."""


def split(line: str) -> Pipeline:
    """Return the commands between the line's pipes. LineError if that cannot be done."""
    scan = _Scan(line)
    scan.commands("", 0)
    if not scan.pipes:
        if scan.empty:
            raise LineError(0, "there is no command")
        return Pipeline([Part(line, errors_too=False)], negated=False)
    if scan.list_at is not None:
        sign = line[scan.list_at]
        doubled = sign in "|&" and line.startswith(2 * sign, scan.list_at)
        sign = "a new line" if sign == "\n" else f"'{(1 + doubled) * sign}'"
        raise LineError(
            scan.list_at,
            f"{sign} beside a pipe: put it into parentheses, as in A | (B; C), or run twice",
        )
    return _cut(line, scan)


def _cut(line: str, scan: _Scan) -> Pipeline:
    parts: list[Part] = []
    start = 0 if scan.negation is None else scan.negation + 1
    for pipe in scan.pipes:
        text = line[start : pipe.position]
        if pipe.empty_before:
            raise LineError(pipe.position, "there is no command before this '|'")
        parts.append(Part(text, pipe.errors_too))
        start = pipe.position + (2 if pipe.errors_too else 1)
    if scan.empty:
        raise LineError(scan.pipes[-1].position, "there is no command after this '|'")
    parts.append(Part(line[start:], errors_too=False))
    return Pipeline(parts, negated=scan.negation is not None)


class _Pipe(NamedTuple):
    position: int
    errors_too: bool
    empty_before: bool


class _Scan:
    """One pass over a line. `commands` calls itself for what stands in parentheses."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.at = 0
        self.pipes: list[_Pipe] = []
        self.list_at: int | None = None
        self.negation: int | None = None
        self.empty = True
        """No command since the last pipe."""
        self._separator: int | None = None
        self._depth = 0

    def _peek(self, ahead: int = 0) -> str:
        return self.line[self.at + ahead : self.at + ahead + 1]

    # -- commands ----------------------------------------------------------------------------------

    def commands(self, closer: str, opened: int) -> None:
        """Read commands up to `closer`, which is read too; "" is the end of the line."""
        self._depth += 1
        nest: list[str] = []
        begins = True
        while self.at < len(self.line):
            sign = self._peek()
            if sign in _BLANK:
                self.at += 1
            elif self.line.startswith("\\\n", self.at):
                self.at += 2
            elif sign == "#":
                end = self.line.find("\n", self.at)
                self.at = len(self.line) if end < 0 else end
            elif sign == ")" and closer and not (nest and nest[-1] in ("esac", "pattern")):
                self.at += 1
                self._leave(nest, opened)
                return
            elif sign in _OPERATORS:
                begins = self._operator(nest)
            else:
                begins = self._word(nest, begins=begins)
        if closer:
            raise LineError(opened, "this '(' is not closed")
        self._leave(nest, self.at)

    def _leave(self, nest: list[str], position: int) -> None:
        self._depth -= 1
        if nest:
            wanted = "esac" if nest[-1] == "pattern" else nest[-1]
            raise LineError(min(position, len(self.line)), f"'{wanted}' is missing")

    def _top(self, nest: list[str]) -> bool:
        return self._depth == 1 and not nest

    def _content(self) -> None:
        """Note that something other than a separator was read: after a `;` it makes a list."""
        if self._separator is not None and self.list_at is None:
            self.list_at = self._separator
        self.empty = False

    def _operator(self, nest: list[str]) -> bool:
        """Read an operator; return if a command may begin behind it."""
        start, sign = self.at, self._peek()
        if sign in "<>":
            self._redirection()
            self._content()
            return False
        if sign == "(":
            self._parenthesis()
            self._content()
            if nest and nest[-1] == "pattern":
                nest[-1] = "esac"
            return True
        self.at += 1
        if sign == ")":
            if not nest or nest[-1] not in ("esac", "pattern"):
                raise LineError(start, "this ')' closes nothing")
            nest[-1] = "esac"
        elif sign == "|" and self._peek() != "|":
            self._pipe(start, nest)
        else:
            self._separate(start, sign, nest)
        return True

    def _separate(self, start: int, sign: str, nest: list[str]) -> None:
        """Read the rest of `;`, `&`, a new line, or of a doubled sign."""
        doubled = sign in "|&;" and self._peek() == sign
        if doubled or (sign == ";" and self._peek() == "&"):
            self.at += 1
            if sign == ";" and nest and nest[-1] == "esac":
                nest[-1] = "pattern"
        if not self._top(nest):
            return
        if doubled or sign == "&":
            self.list_at = start if self.list_at is None else self.list_at
        elif not self.empty and self._separator is None:
            self._separator = start

    def _pipe(self, start: int, nest: list[str]) -> None:
        errors_too = self._peek() == "&"
        if errors_too:
            self.at += 1
        if not self._top(nest):
            return
        if self._separator is not None and self.list_at is None:
            self.list_at = self._separator
        self.pipes.append(_Pipe(start, errors_too, self.empty))
        self.empty = True

    def _parenthesis(self) -> None:
        opened = self.at
        self.at += 1
        self.commands(")", opened)

    def _redirection(self) -> None:
        start = self.at
        if self.line.startswith("<<", start) and not self.line.startswith("<<<", start):
            raise LineError(start, "a here-document cannot be split: use printf, or a file")
        if self.line[start : start + 2] in ("<(", ">("):
            self.at += 1
            self._parenthesis()
            return
        self.at += next(len(sign) for sign in _REDIRECTIONS if self.line.startswith(sign, start))

    # -- words -------------------------------------------------------------------------------------

    def _word(self, nest: list[str], *, begins: bool) -> bool:
        """Read a word; return if a command may begin behind it."""
        start = self.at
        plain = self._read_word()
        word = self.line[start : self.at] if plain else ""
        if nest and nest[-1] == "pattern" and word != "esac":
            return False
        if word == "in" and nest and nest[-1] == "esac-in":
            nest[-1] = "pattern"
            return False
        if not begins and not (nest and nest[-1] == "pattern"):
            self._content()
            return False
        if word == "!" and self._top(nest) and self.empty:
            if self.pipes or self.negation is not None:
                raise LineError(start, "one '!' may stand before the first command, no other")
            self.negation = start
            return True
        self._content()
        return self._reserved(word, start, nest)

    def _reserved(self, word: str, start: int, nest: list[str]) -> bool:
        """Enter or leave a compound command, if this word does; return if a command may follow."""
        if word in _OPENERS:
            nest.append("esac-in" if word == "case" else _OPENERS[word])
            return word not in ("for", "case")
        if word in _CLOSERS:
            wanted = "esac" if nest and nest[-1] == "pattern" else (nest[-1] if nest else "")
            if word != wanted:
                raise LineError(start, f"this '{word}' closes nothing")
            nest.pop()
            return True
        return word in _BEFORE_COMMAND

    def _read_word(self) -> bool:
        """Read past a word; return if nothing in it was quoted or expanded."""
        plain = True
        while self.at < len(self.line):
            sign = self._peek()
            if sign in _BLANK or sign in _OPERATORS:
                break
            if sign in "\\'\"`$":
                plain = False
                self._quoted(sign)
            else:
                self.at += 1
        return plain

    def _quoted(self, sign: str) -> None:
        if sign == "\\":
            self.at += 2
        elif sign == "'":
            self._until_quote("'", self.at + 1)
        elif sign == '"':
            self._double()
        elif sign == "`":
            self._backquoted()
        else:
            self._dollar(in_double=False)

    def _until_quote(self, quote: str, start: int) -> None:
        end = self.line.find(quote, start)
        if end < 0:
            raise LineError(self.at, f"this {quote} is not closed")
        self.at = end + 1

    def _double(self) -> None:
        opened = self.at
        self.at += 1
        while self.at < len(self.line):
            sign = self._peek()
            if sign == '"':
                self.at += 1
                return
            if sign == "\\":
                self.at += 2
            elif sign == "`":
                self._backquoted()
            elif sign == "$":
                self._dollar(in_double=True)
            else:
                self.at += 1
        raise LineError(opened, 'this " is not closed')

    def _backquoted(self) -> None:
        opened = self.at
        self.at += 1
        while self.at < len(self.line):
            sign = self._peek()
            self.at += 2 if sign == "\\" else 1
            if sign == "`":
                return
        raise LineError(opened, "this ` is not closed")

    def _dollar(self, *, in_double: bool) -> None:
        opened = self.at
        if self.line.startswith("$((", opened):
            self.at += 3
            self._balanced(opened, "()", 2, in_double=in_double)
        elif self.line.startswith("$(", opened):
            self.at += 2
            self.commands(")", opened + 1)
        elif self.line.startswith("${", opened):
            self.at += 2
            self._balanced(opened, "{}", 1, in_double=in_double)
        elif self.line.startswith("$'", opened) and not in_double:
            self._until_quote("'", self.at + 2)
            text = self.line[opened : self.at - 1]
            if (len(text) - len(text.rstrip("\\"))) % 2:
                raise LineError(opened, "shells do not agree on \\' in $'...': quote otherwise")
        else:
            self.at += 1

    def _balanced(self, opened: int, pair: str, depth: int, *, in_double: bool) -> None:
        """Read past an arithmetic or parameter expansion; inside, only quotes have a meaning."""
        while depth and self.at < len(self.line):
            sign = self._peek()
            if sign in '\\"`$' or (sign == "'" and not in_double):
                self._quoted(sign)
            else:
                depth += (sign == pair[0] and pair == "()") - (sign == pair[1])
                self.at += 1
        if depth:
            raise LineError(opened, f"this {self.line[opened : opened + 2]} is not closed")
