"""Excel workbooks, read by pandas with openpyxl."""

from __future__ import annotations

import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_a2.data.records import Records
from lora_a2.errors import DataError
from lora_a2.system.invocation import installer


def read_excel(path: Path, most: int) -> tuple[Records, list[str]]:
    """The first sheet of a workbook and the names of all sheets; the values are strings as pandas writes them, "" where a cell is empty.

    Rows and columns without any value are left out, as blank lines of CSV files are.

    Raises:
        DataError: openpyxl is not installed.
        ValueError: it unpacks to more than `most` bytes, has no row below its header, or a column name occurs twice.
    """
    if find_spec("openpyxl") is None:
        raise DataError(f"Excel files need openpyxl: {installer('excel')}; or save the sheet as CSV.")
    import pandas as pd

    with zipfile.ZipFile(path) as packed:
        if sum(part.file_size for part in packed.infolist()) > most:
            raise ValueError(f"it unpacks to more than {most} bytes; save the sheet as CSV")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on styles and other extras of the workbook, which are not read
        with pd.ExcelFile(path, engine="openpyxl") as book:
            sheets = [str(name) for name in book.sheet_names]
            read: dict[str, Any] = {"header": None, "dtype": str, "na_filter": False}
            rows = [[str(value) for value in row] for row in book.parse(0, **read).to_numpy().tolist()]
    rows = [row for row in rows if any(value.strip() for value in row)]
    if len(rows) < 2:
        raise ValueError("there is no row below the header" if rows else f"its first sheet, '{sheets[0]}', is empty")
    used = [i for i in range(len(rows[0])) if any(row[i].strip() for row in rows)]
    names = [rows[0][i].strip() or f"column {i + 1}" for i in used]
    if len(set(names)) < len(names):
        raise ValueError(f"a column name occurs twice in the header {names}")
    columns = {name: [row[i] for row in rows[1:]] for i, name in zip(used, names, strict=True)}
    return Records(columns, dict.fromkeys(names)), sheets
