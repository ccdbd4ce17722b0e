"""Compare two recorded models in a notebook."""

# %% [markdown]
# # What does the update change?
#
# Two versions of a support assistant answered the same twelve questions; their answers are recorded in
# `v1.jsonl` and `v2.jsonl`. Run this file as a script, or cell by cell as a notebook in an editor that
# knows `# %%`.

# %%
from pathlib import Path

from pytest_muscle import Flip, compare

here = Path(__file__).parent if "__file__" in globals() else Path.cwd()
comparison = compare(
    f"recorded:{here / 'v1.jsonl'}",
    f"recorded:{here / 'v2.jsonl'}",
    here / "golden.jsonl",
    thresholds={"max_nfr": 0.1, "slices": {"lang=de": {"max_nfr": 0.0}}},
)

# %% [markdown]
# The last expression of a cell shows itself: verdict, gates, quadrants, rates by dataset, worst flips.

# %%
comparison  # noqa: B018

# %% [markdown]
# Which answers broke? Each result knows its case, both responses and both grades.

# %%
for result in comparison.of(Flip.NEGATIVE):
    case = result.case
    print(f"{case.id} ({case.tags['lang']}): {result.old_grade.answer} -> {result.new_grade.answer}")

# %% [markdown]
# As a table: one row a case, to be grouped and plotted as you like.

# %%
frame = comparison.to_frame()
print(frame.groupby("tag.lang")[["old_correct", "new_correct"]].mean())

# %% [markdown]
# Outside of a notebook, the same picture is a piece of HTML.

# %%
if "get_ipython" not in globals():
    page = Path("comparison.html")
    page.write_text(f"<!doctype html><meta charset=utf-8>{comparison._repr_html_()}", "utf-8")
    print(f"written: {page}")
