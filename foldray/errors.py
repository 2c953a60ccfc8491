"""The one exception a user is meant to read."""


class UserError(Exception):
    """The user's input is wrong: one line that says where and how to mend it (exit code 2).

    `where` names the field, file or row; `problem` says what is wrong and what to do.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class DamagedFileError(UserError):
    """A file does not contain what was written to it, such as JSON that was cut off."""


def one_line(error: BaseException, most: int = 200) -> str:
    """An exception's message on one line of at most so many characters, or its kind where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
