"""What a process leaves behind, and a stand-in for its end."""

from pathlib import Path


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Stands for the end of the process."""
