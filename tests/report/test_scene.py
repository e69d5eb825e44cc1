from bevquant.data.frame import CLASSES
from bevquant.report.scene import FramePicture, count


def test_a_picture_is_counted_as_it_was_made(pictures: tuple[FramePicture, ...]) -> None:
    for picture in pictures:
        figures = count(picture)
        assert (figures.objects, figures.found_by_float, figures.found_by_quantized) == (34, 30, 27)
        assert (len(figures.lost), len(figures.new_false)) == (3, 2)
        expected = {CLASSES[label] for label in picture.truth.labels[4:7]}
        assert {lost.label for lost in figures.lost} == expected
        scores = {round(float(score), 5) for score in picture.float_.scores[:3]}
        assert {round(lost.score, 5) for lost in figures.lost} == scores
