"""`attndsl cache path | list | verify | clear`: the cache folder, as its user sees it.

Nothing is lost with an entry but the time to make it again; processes at work never notice.
"""

from __future__ import annotations

import sys
import time

import click

from attndsl.runtime.cache import LIMIT, CachedFile, cache_dir, cached_files, remove

DAY = 24 * 3600
UNITS = (("d", DAY), ("h", 3600), ("min", 60), ("s", 1))


@click.group("cache")
def cache_commands() -> None:
    """Look after the folder of compiled kernels; ATTNDSL_CACHE_DIR moves it.

    It keeps itself within a bound: what was used longest ago goes first.
    """


@cache_commands.command("path")
def path_() -> None:
    """Print where the folder is."""
    click.echo(cache_dir())


@cache_commands.command("list")
def list_() -> None:
    """List the entries, those used last first: size, age, last use, and what each was made for."""
    from attndsl.runtime.inventory import inventory

    folder = cache_dir()
    entries, now = inventory(folder), time.time()
    if entries:
        click.echo(click.style(_row("size", "made", "used", "", "what it is"), bold=True))
    for entry in entries:
        ages = (_age(now - entry.made), _age(now - entry.used))
        click.echo(_row(_size(entry.size), *ages, entry.language, entry.title))
    total = sum(entry.size for entry in entries)
    click.echo(f"{_entries(len(entries))}, {_size(total)} of at most {_size(LIMIT)}, in {folder}")


@cache_commands.command()
@click.option("--delete", is_flag=True, help="Remove what is not as it was written.")
def verify(delete: bool) -> None:
    """Check that every file is what was written, for this user alone; exit status 1 where one is not.

    Kernels are checked in any case each time they are loaded, and made again where they are not what was written.
    """
    from attndsl.runtime.inventory import damages

    folder = cache_dir()
    files, found = cached_files(folder), list(damages(folder))
    for damage in found:
        click.echo(f"{damage.file.path}: {damage.why}", err=True)
    if not found:
        click.echo(f"{_files(len(files))} in {folder}: all as they were written")
        return
    if delete:
        _removed([damage.file for damage in found])
    else:
        click.echo(f"{len(found)} of {_files(len(files))} in {folder} cannot be used; --delete removes them", err=True)
    sys.exit(1)


@cache_commands.command()
@click.option("--unused-for", type=click.FloatRange(min=0), metavar="DAYS", help="Only what was not used for so long.")
def clear(unused_for: float | None) -> None:
    """Remove the entries; files that are not attndsl's are left alone."""
    before = time.time() - (unused_for or 0) * DAY
    _removed([file for file in cached_files(cache_dir()) if unused_for is None or file.used <= before])


def _removed(files: list[CachedFile]) -> None:
    """Remove files and say so; exit status 1 where one could not be removed."""
    failures = remove(files)
    kept = {str(error.filename) for error in failures}
    gone = [file for file in files if str(file.path) not in kept]
    for error in failures:
        click.echo(f"cannot remove {error.filename}: {error.strerror}", err=True)
    click.echo(f"removed {_files(len(gone))}, {_size(sum(file.size for file in gone))}, from {cache_dir()}")
    if failures:
        sys.exit(1)


def _row(size: str, made: str, used: str, language: str, title: str) -> str:
    return f"{size:>9}  {made:>7}  {used:>7}  {language:<6}  {title}"


def _size(size: int) -> str:
    """A number of bytes, for people."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _age(seconds: float) -> str:
    """A stretch of time in its largest unit."""
    for unit, scale in UNITS:
        if seconds >= scale:
            return f"{int(seconds // scale)} {unit}"
    return "now"


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"
