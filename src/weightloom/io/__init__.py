"""Bytes on disk: strict safetensors, foreign checkpoints behind checks, JSON, YAML, atomic writes.

Whatever is read here was written by a stranger: every reader checks sizes and names before it
allocates, and has one way to fail. Whatever is written here is there completely or not at all.
Knows nothing of architectures, zoos or generators: a checkpoint is names, shapes and numbers.
"""

from __future__ import annotations

from weightloom.io.atomic import (
    COMMIT_FILE,
    atomic_file,
    atomic_folder,
    make_folder,
    sweep,
    verify_folder,
    write_bytes,
    write_text,
)
from weightloom.io.budget import allocation_limit
from weightloom.io.cache import cache_dir
from weightloom.io.documents import Recipe, dump_json, parse_json, read_json, read_yaml, write_json
from weightloom.io.files import open_regular, read_bytes, require_plain, sha256_of
from weightloom.io.kinds import FileKind, file_kind
from weightloom.io.legacy import load_legacy, load_parts, load_pinned
from weightloom.io.locks import alone
from weightloom.io.programs import run_program
from weightloom.io.shards import read_shards, shards_header, shards_metadata, write_shards
from weightloom.io.staged import settle, staged_files
from weightloom.io.temporary import sweep_temporary, temporary_folder
from weightloom.io.tensors import (
    Header,
    TensorInfo,
    load_rows,
    load_tensors,
    read_header,
    save_tensors,
    shapes_of,
)

__all__ = [
    "COMMIT_FILE",
    "FileKind",
    "Header",
    "Recipe",
    "TensorInfo",
    "allocation_limit",
    "alone",
    "atomic_file",
    "atomic_folder",
    "cache_dir",
    "dump_json",
    "file_kind",
    "load_legacy",
    "load_parts",
    "load_pinned",
    "load_rows",
    "load_tensors",
    "make_folder",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_header",
    "read_json",
    "read_shards",
    "read_yaml",
    "require_plain",
    "run_program",
    "save_tensors",
    "settle",
    "sha256_of",
    "shapes_of",
    "shards_header",
    "shards_metadata",
    "staged_files",
    "sweep",
    "sweep_temporary",
    "temporary_folder",
    "verify_folder",
    "write_bytes",
    "write_json",
    "write_shards",
    "write_text",
]
