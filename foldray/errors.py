"""The exception whose message is written for users."""


class UserError(Exception):
    """An error in the user's input or environment, reported in one line (exit code 2).

    Args:
        where: Field, file or row with the error.
        problem: What is wrong and how to fix it.
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
    """Return an exception's message on one line of at most `most` characters, or its class name if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
