"""Runs the notebooks in this folder from top to bottom and keeps what they print: python notebooks/execute.py"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  its first import is slow and says so: better here than within a notebook
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent


def execute(path: Path, change: tuple[str, str]) -> NotebookNode:
    """The notebook as it comes out, run in a temporary copy of this folder.

    `change` is a text in its sources and what to put in its place.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = cell.source.replace(*change)
        client = NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
        client.execute()
    return tidied(notebook)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs from machine to machine, and with a mark of the sources that its outputs came from."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}, "executed": digest(notebook)}
    )
    for cell in notebook.cells:
        cell.metadata.clear()
    return notebook


def digest(notebook: NotebookNode) -> str:
    """The SHA-256 of the sources of all cells."""
    return hashlib.sha256("\0".join(cell.source for cell in notebook.cells).encode()).hexdigest()


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description="Run notebooks from top to bottom and keep what they print.")
    parser.add_argument("notebook", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")), help="which (all)")
    parser.add_argument("--into", metavar="DIR", type=Path, default=FOLDER, help="where to write what comes out")
    parser.add_argument("--arch", metavar="URL", default="", help="for the setting ARCH_ROUTER")
    options = parser.parse_args()
    for path in options.notebook:
        nbformat.write(execute(path, ('ARCH_ROUTER = ""', f'ARCH_ROUTER = "{options.arch}"')), options.into / path.name)
        print(f"ran {path.name}")


if __name__ == "__main__":
    main()
