"""What `crawl.py` has img2dataset do. Runs in its own environment only.

python benchmarks/crawl_peers.py '{"folder": ...}'
"""

import json
import sys
from pathlib import Path

ORIGINALS = {"resize_mode": "no", "skip_reencode": True}
OPTIONS = {
    "originals": ORIGINALS,
    "resized": {
        "resize_mode": "keep_ratio_largest",
        "image_size": 512,
        "resize_only_if_bigger": True,
        "skip_reencode": True,
        "encode_quality": 92,
    },
    "checked": ORIGINALS,
    "faulty": ORIGINALS,
}


def main() -> None:
    """Download, and print when the first shard began and the last ended, by its own count."""
    from img2dataset import download

    plan = json.loads(sys.argv[1])
    urls = [url for file in plan["url_files"] for url in Path(file).read_text().splitlines()]
    url_list, output = Path(plan["folder"], "urls.txt"), Path(plan["output"])
    url_list.write_text("".join(f"{url}\n" for url in urls))
    download(
        url_list=str(url_list),
        output_folder=str(output),
        output_format="webdataset",
        processes_count=len(plan["url_files"]),
        thread_count=plan["threads"],
        number_sample_per_shard=-(-len(urls) // len(plan["url_files"])),
        timeout=plan["timeout"],
        retries=plan["tries"] - 1,
        compute_hash=None,
        extract_exif=False,
        **({"disable_all_reencoding": True} if plan["undecoded"] else OPTIONS[plan["case"]]),
    )
    stats = [json.loads(path.read_text()) for path in output.glob("*_stats.json")]
    seconds = max(one["end_time"] for one in stats) - min(one["start_time"] for one in stats)
    print("\n" + json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
