"""Real tweets, a trained teacher, and what a person said of the texts. Skipped where the data is not at hand."""

import csv

import pytest
from optional_data import FOLDER, needs

from xmodal.posts.readers import read_posts
from xmodal.teacher.teacher import TeacherConfig, load_teacher

NAMES = ("mvsa/posts.jsonl", "mvsa/labels_dev.csv", "weights/teacher_minilm_semeval")
POSTS, LABELS, MODEL = (FOLDER / name for name in NAMES)

pytestmark = needs(*NAMES)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trained_teacher_agrees_with_people_and_the_more_the_surer_it_is(precision, record_property):
    posts = [record.post for record in read_posts(str(POSTS)) if record.post]
    assert len(posts) == 4869
    teacher = load_teacher(TeacherConfig(kind="transformers", model=str(MODEL), precision=precision))
    labels = teacher.label([post.text for post in posts])
    label_of = {post.media[0].url: label for post, label in zip(posts, labels, strict=True)}
    with LABELS.open(newline="") as file:
        human = {row["path"]: int(row["text_class"]) for row in csv.DictReader(file)}
    assert len(human) == 3611
    accuracies = []
    for threshold in (0, 0.6, 0.7, 0.8):
        right = [
            label_of[path].index(max(label_of[path])) == expected
            for path, expected in human.items()
            if max(label_of[path]) > threshold
        ]
        accuracies.append(sum(right) / len(right))
        record_property(f"accuracy where confidence is above {threshold}", f"{accuracies[-1]:.3f} of {len(right)}")
    assert accuracies[0] >= 0.65
    assert accuracies == sorted(set(accuracies))
