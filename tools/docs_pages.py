"""Hook of mkdocs.yml that gives each page the same path in the site as in the repository.

So links between pages, and links to configs and results, work in both. The hook also adds the page
of all config keys, which shows ``rambo_det/config.py`` with a comment on each key.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
IN_THE_SITE = ("*.md", "*.txt", "docs/**/*", "configs/**/*", "results/**/*", "notebooks/*")
KEYS = """# Keys of the config

Look up any key here. Set keys in a yaml, or at the end of a command line: `MODEL.RAMBO.MARGIN 0.5`.
`rambo_det.add_rambo_config(cfg)` adds them to a config. This is `rambo_det/config.py`:

```python
{}```
"""


def on_files(files: Any, config: Any) -> Any:
    """Replaces the files of docs/ by files of the repository; adds the page of all config keys."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    paths = {path for pattern in IN_THE_SITE for path in ROOT.glob(pattern) if path.is_file()}
    for path in sorted(paths | {ROOT / "rambo_det/config.py"}):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, use_directory_urls=False))
    source = (ROOT / "rambo_det/config.py").read_text(encoding="utf-8")
    files.append(File.generated(config, "docs/keys.md", content=KEYS.format(source)))
    return files
