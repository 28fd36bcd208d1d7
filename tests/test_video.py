"""Reading, writing and shading video, and the bundled clip."""

import re

import numpy as np
import pytest

from experiments import data, video
from experiments.data import clips
from experiments.data import cut_one_by_one_person as cutting
from experiments.errors import UserError


def pictures(count: int, h: int = 32, w: int = 48) -> list[np.ndarray]:
    """A bright square that moves over a smooth background."""
    background = np.add.outer(np.arange(h), np.arange(w))[..., None] + np.array([20, 60, 100])
    found = []
    for index in range(count):
        image = background.astype(np.uint8)
        image[8:16, 4 * index : 4 * index + 8] = 240
        found.append(image)
    return found


# --- files ---------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path):
    path, images = tmp_path / "new" / "a.mp4", pictures(6)
    video.write(path, images, 10)
    again = list(video.frames(path))
    assert [image.shape for image in again] == [(32, 48, 3)] * 6
    assert {image.dtype for image in again} == {np.dtype(np.uint8)}
    # Lossy, and colours at half the resolution; but the square is where it was.
    assert np.abs(np.float32(again) - np.float32(images)).mean() < 8
    assert video.about(path) == (10, 6)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]
    written = path.read_bytes()
    video.write(path, iter(images), 10)
    assert path.read_bytes() == written
    assert written.index(b"moov") < written.index(b"mdat")  # a browser can start at once


def test_frames_come_one_at_a_time(tmp_path):
    video.write(tmp_path / "a.mp4", pictures(8), 10)
    reading = video.frames(tmp_path / "a.mp4")
    assert next(reading).shape == (32, 48, 3)
    reading.close()


def test_files_that_cannot_be_read_are_told_in_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    refused = lambda message: pytest.raises(UserError, match=message)
    with refused(r"a\.mp4 is not there: give the path of a video"):
        list(video.frames(path))
    path.write_bytes(b"no video " * 100)
    with refused(r"a\.mp4 cannot be opened \(.*\): is it a video"):
        list(video.frames(path))
    with refused("cannot be opened"):
        video.about(path)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(20)]
    video.write(path, noise, 10)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refused(r"a\.mp4 (ends after \d+ of 20 frames|cannot be decoded .*): copy it again"):
        list(video.frames(path))
    path.write_bytes(whole[:100])
    with refused("cannot be opened|holds no video stream"):
        list(video.frames(path))
    path.write_bytes(whole)
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with refused("has frames of 48x32, over the limit of 1000 pixels: scale it down"):
        list(video.frames(path))


def test_a_sound_file_and_a_change_of_size_are_refused(tmp_path):
    import av

    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="holds no video stream"):
        list(video.frames(path))
    # Two sequences of different size in one raw stream, each with its own header.
    parts = []
    for h, w in ((32, 48), (48, 32)):
        one = tmp_path / f"{h}.h264"
        with av.open(str(one), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = h, w, "yuv420p"
            for image in pictures(3, h, w):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(one.read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    with pytest.raises(UserError, match=r"from 48x32 to 32x48 at frame [1-3]: cut it there"):
        list(video.frames(path))


def test_frames_that_cannot_be_written_are_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match=r"no frames for .*: pass at least one"):
        video.write(path, [], 10)
    for images in (
        [*pictures(1), *pictures(1, 16, 16)],
        pictures(1, 31, 48),
        [pictures(1)[0].astype(np.float32)],
        [pictures(1)[0][..., 0]],
    ):
        with pytest.raises(ValueError, match=r"pass uint8 \[h, w, 3\] with even h and w"):
            video.write(path, images, 10)
    assert list(tmp_path.iterdir()) == []


# --- shading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(32, 48), (30, 41)])
def test_shading_keeps_what_was_recomputed_and_greys_the_rest(h, w):
    (frame,) = pictures(1, h, w)
    before = frame.copy()
    active = np.zeros((2, 3), bool)
    active[0, 1] = active[1, 1] = True
    shaded = video.shade(frame, active, 16)
    np.testing.assert_array_equal(frame, before)
    assert (shaded.shape, shaded.dtype) == ((h, w, 3), np.uint8)
    np.testing.assert_array_equal(shaded[1 : h - 1, 17:31], frame[1 : h - 1, 17:31])
    skipped = shaded[:, 32:]
    assert (skipped == skipped[..., :1]).all()
    assert skipped.mean() < 0.5 * frame[:, 32:].mean()
    outline = shaded[:, 16]
    assert (outline == outline[0]).all()
    assert len(set(outline[0].tolist())) == 3  # a colour


def test_shading_all_and_nothing():
    (frame,) = pictures(1)
    whole = video.shade(frame, np.ones((2, 3), bool), 16)
    np.testing.assert_array_equal(whole, frame)
    dark = video.shade(frame, np.zeros((2, 3), bool), 16)
    assert (dark == dark[..., :1]).all()
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(2, 3\)"):
        video.shade(frame, np.ones((3, 2), bool), 16)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (14, 24)])
def test_masks_survive_being_packed(shape, rng):
    mask = rng.random(shape) < 0.3
    digits = video.packed(mask)
    assert set(digits) <= set("0123456789abcdef")
    np.testing.assert_array_equal(video.unpacked(digits, shape), mask)


# --- the bundled clip ----------------------------------------------------------------------------


def test_the_clip_is_small_and_says_where_it_comes_from():
    path = data.clip()
    size = path.stat().st_size
    assert size < 2e6
    readme = (path.parent / "README.md").read_text()
    for stated in ("Commons Attribution 4.0", "Intel", "5797889", f"{size:,}"):
        assert stated in readme
    (sha256,) = re.findall(r"`(\w{64})`", readme)
    assert sha256 == clips.SHA256


def test_a_damaged_clip_is_named_with_the_cure(tmp_path, monkeypatch):
    damaged = tmp_path / "clip.mp4"
    monkeypatch.setattr(clips, "CLIP", damaged)
    with pytest.raises(UserError, match=r"clip\.mp4 is missing: restore it from the repository"):
        data.clip()
    damaged.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"has sha256 .* expected 6aeb3114b976\.\.\.: restore"):
        data.clip()


def test_the_clip_stands_still_where_its_readme_says_so():
    images = list(video.frames(data.clip()))
    assert len(images) == cutting.STOP - cutting.FIRST
    assert images[0].shape == (432, 768, 3)
    readme = (data.clip().parent / "README.md").read_text()
    equal, quiet = (
        float(share) / 100 for share in re.findall(r"[\d.]+ % \| ([\d.]+) % \|", readme)
    )
    # Another FFmpeg may round colours differently.
    assert cutting.still(images) == pytest.approx(equal, abs=0.02)
    assert cutting.quiet(images) == pytest.approx(quiet, abs=0.02)


def test_the_clip_is_cut_and_encoded_as_described(tmp_path):
    images = pictures(8) + 40 * pictures(8)[-1:]  # moves, then stands still
    path = tmp_path / "a.mp4"
    cutting.encode(path, images, 10, (32, 48))
    again = list(video.frames(path))
    assert len(again) == len(images)
    assert cutting.still(again[-20:]) == 1
    assert cutting.quiet(again[-20:]) == 1
    assert 0 < cutting.still(again[:8]) < 1
    assert list(cutting.cut(path)) == []
