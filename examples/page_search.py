"""Find pages by what is on them, with all vectors and in two stages.

python examples/page_search.py                                   # drawn pages, built-in model
python examples/page_search.py scans/ --query "the invoice of May" --model vidore/colqwen2-v1.0-hf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vlmcompress
from vlmcompress.eval.worlds.pages import collection, draw_page


def main() -> None:
    parser = argparse.ArgumentParser(description="Search pages with a late-interaction model.")
    parser.add_argument("folder", nargs="?", type=Path, help="pictures of pages")
    parser.add_argument("--query", action="append", help="may be given several times")
    parser.add_argument("--model", default="tiny-colqwen", help="built-in name, folder or hub id")
    parser.add_argument("--method", default="divprune", help="which visual tokens pages keep")
    parser.add_argument("--budget", default="50%", help='visual tokens per page: 64 or "50%%"')
    parser.add_argument("--coarse", default="hierarchical(factor=10)", help="for candidates")
    arguments = parser.parse_args()

    if arguments.folder is None:
        drawn = collection(pages=24, queries=3)
        names = [f"page {page.seed}" for page in drawn.pages]
        pages = [draw_page(page) for page in drawn.pages]
        texts = [query.text for query in drawn.queries]
    else:
        files = sorted(path for path in arguments.folder.iterdir() if path.is_file())
        names, pages, texts = [path.name for path in files], files, arguments.query or []

    model, processor = vlmcompress.load(arguments.model)
    queries = vlmcompress.embed(model, processor, texts=texts)
    vectors, coarse = vlmcompress.embed(
        model,
        processor,
        pages,
        method=arguments.method,
        budget=arguments.budget,
        pool=[None, arguments.coarse],
        tokens="visual",
    )
    print(f"{len(pages)} pages of {len(vectors[0])} vectors, {len(coarse[0])} to choose candidates")
    hits = vlmcompress.search(queries, vectors, k=3, coarse=coarse, candidates=10)
    for text, places, scores in zip(texts, hits.pages, hits.scores, strict=True):
        found = [
            f"{names[place]} ({score:.2f})" for place, score in zip(places, scores, strict=True)
        ]
        print(f"{text}: {', '.join(found)}")


if __name__ == "__main__":
    main()
