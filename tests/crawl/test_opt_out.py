import pytest

from xmodal.crawl.opt_out import is_opted_out


@pytest.mark.parametrize(
    "headers",
    [
        ["noai"],
        ["NoImageAI"],
        [" noindex , NOAI "],
        ["noindex", "nofollow,noimageai"],
        ["xmodal: noai"],
        ["XModal : noindex, noai"],
        ["*: noai"],
        ["otherbot: noindex, xmodal: noai"],
        ["otherbot: noindex", "noai"],
        ["unavailable_after: Wed, 21 Oct 2026 07:28:00 GMT, noai"],
        ["max-snippet: 5, noimageai"],
        [",,noai,"],
    ],
)
def test_an_opt_out_for_all_or_for_us_is_obeyed(headers):
    assert is_opted_out(headers, "xmodal")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["all"],
        ["noindex, nofollow"],
        ["noaicontent"],
        ["otherbot: noai"],
        ["otherbot: noindex, noai"],
        ["xmodal: noindex, otherbot: noai"],
        ["unavailable_after: 25 Jun 2010 15:00:00 PST"],
        ["no ai"],
    ],
)
def test_what_is_none_or_is_said_to_another_bot_is_not(headers):
    assert not is_opted_out(headers, "xmodal")
