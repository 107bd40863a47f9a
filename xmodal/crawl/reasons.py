"""Why a picture gave no sample: codes of the failures files. Those of posts are `xmodal.posts.post.UNREADABLE`."""

REASONS = {
    "not_a_photo": "a post's media is a video or another kind",
    # Of what was asked for.
    "bad_url": "not a URL of http:// or https:// and a host; also where a redirect leads to one",
    "forbidden_address": "the host, or one that it redirects to, is not on the public internet (see `allow_networks`)",
    "host_down": "the host is given up for now: it has not answered for long, or asks for a long pause; may pass",
    "connection_error": "no connection to the host, or it broke before an answer; may pass",
    "bad_certificate": "the host's certificate does not hold",
    "timeout": "no answer, or not all of it, in time, or it came too slowly; may pass",
    "cut_off": "the connection ended before the whole answer was there; may pass",
    "bad_answer": "what came is not HTTP, or its headers are larger than any picture needs",
    "http_error": "another status than 200, see `http_status`; 408, 425, 429 and most of 5xx may pass",
    "too_many_redirects": "more redirects in a row than `max_redirects`",
    "opted_out": "the host says that this is not to be learned from (X-Robots-Tag: noai or noimageai)",
    # Of what `media_folder` was asked for.
    "no_such_file": "no file lies at the path",
    "outside_folder": "the path leads out of the folder, by `..` or a link",
    "unreadable_file": "the file is there and could not be read; may pass",
    # Of what came.
    "too_large": "more bytes than `max_bytes`, as sent or as unpacked",
    "empty": "an answer without content",
    "not_an_image": "no picture of a format that we keep",
    "too_many_pixels": "more pixels than `max_pixels`, by its header",
    "too_small": "a side shorter than `min_side`",
    "undecodable": "a picture that is damaged or not whole",
    # Of us.
    "out_of_memory": "the worker had too little memory to decode it; may pass",
    "internal_error": "xmodal failed on it, the log says how; may pass with a later version",
}
"""Code → what happened. Those that "may pass" are marked `retryable`."""
