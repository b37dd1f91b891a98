"""Downloads against a local server: what is checked, what is left behind, what happens offline."""

import gzip
import hashlib
import http.server
import io
import socket
import struct
import tarfile
import threading
import urllib.request

import numpy as np
import pytest

from jopt import data
from jopt.data import download

CONTENT = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's `files`; a file is its bytes and how many of them really come."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content, sent = self.server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JOPT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(server):
    def serve(name, content, sent=None, promised=None):
        """Put a file on the server; its record promises `promised`, by default the content itself."""
        server.files["/" + name] = (content, sent)
        promised = content if promised is None else promised
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        return download.Remote(name, url, len(promised), hashlib.sha256(promised).hexdigest())

    return serve


def nothing_in(folder):
    return not folder.exists() or not list(folder.iterdir())


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


UNREACHABLE = download.Remote("mnist.npz", f"http://127.0.0.1:{closed_port()}/mnist.npz", 10, "0" * 64)


def test_a_file_is_downloaded_once(serve, server, cache, capfd):
    remote = serve("good.bin", CONTENT)
    path = download.fetch(remote)
    assert path == cache / "good.bin"
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]
    assert f"Downloading {remote.url}" in capfd.readouterr().err
    assert download.fetch(remote) == path
    assert server.asked == ["/good.bin"]
    assert capfd.readouterr().err == ""


def test_a_cached_file_needs_no_network(cache):
    cache.mkdir()
    (cache / "mnist.npz").write_bytes(CONTENT)
    remote = UNREACHABLE._replace(size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    assert download.fetch(remote).read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_fetched_again(serve, server, cache):
    remote = serve("good.bin", CONTENT)
    cache.mkdir()
    (cache / "good.bin").write_bytes(CONTENT[:-1] + b"?")
    assert download.fetch(remote).read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("promised", "sent", "message"),
    [
        (CONTENT[::-1], None, "a file with SHA-256"),
        (CONTENT + b"more", None, f"a file of {len(CONTENT)} bytes"),
        (CONTENT[:100], None, "a file of"),
        (CONTENT, 5000, "5000 bytes"),
    ],
)
def test_a_wrong_or_cut_file_is_an_error_and_leaves_nothing(serve, cache, promised, sent, message):
    remote = serve("bad.bin", CONTENT, sent=sent, promised=promised)
    with pytest.raises(data.DownloadError, match=rf"(?s)bad.bin was asked for.*{message}.*expected.*JOPT_DATA"):
        download.fetch(remote, timeout=5)
    assert nothing_in(cache)


def test_a_missing_file_and_a_missing_server_are_errors(serve, server, cache):
    remote = serve("good.bin", CONTENT)
    server.files.clear()
    with pytest.raises(data.DownloadError, match="404"):
        download.fetch(remote)
    with pytest.raises(data.DownloadError, match="refused"):
        download.fetch(UNREACHABLE)
    assert nothing_in(cache)


def test_a_server_that_says_nothing_is_given_up(cache):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        remote = UNREACHABLE._replace(url=f"http://127.0.0.1:{mute.getsockname()[1]}/x")
        with pytest.raises(data.DownloadError, match="timed out"):
            download.fetch(remote, timeout=0.2)
    assert nothing_in(cache)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_download_leaves_nothing(serve, cache, monkeypatch, interruption):
    remote = serve("good.bin", CONTENT)
    opened = urllib.request.urlopen

    def interrupted(*args, **kwargs):
        answer = opened(*args, **kwargs)
        read = answer.read
        pieces = iter([lambda: read(10)])

        def first_ten_bytes(size):
            for piece in pieces:
                return piece()
            assert [path.stat().st_size >= 0 for path in cache.iterdir()] == [True], "a part is on the disk"
            raise interruption

        answer.read = first_ten_bytes
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", interrupted)
    with pytest.raises(data.DownloadError if interruption is OSError else KeyboardInterrupt):
        download.fetch(remote)
    assert nothing_in(cache)


def test_a_folder_that_cannot_be_made_is_an_error(serve, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JOPT_DATA", str(tmp_path / "file" / "cache"))
    with pytest.raises(data.DownloadError, match="JOPT_DATA chooses another folder"):
        download.fetch(serve("good.bin", CONTENT))


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(monkeypatch, cache):
    assert download.cache_folder() == cache
    monkeypatch.delenv("JOPT_DATA")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(download.cache_folder()) == "/home/someone/.cache/jopt"


def test_registered_files_come_by_https_with_a_digest():
    for remote in (download.MNIST, *download.FASHION_MNIST, download.CIFAR10):
        assert remote.url.startswith("https://")
        assert len(bytes.fromhex(remote.sha256)) == 32
        assert remote.size > 5000


RANDOM = np.random.RandomState(0)
GREY = RANDOM.randint(0, 256, (30, 28, 28)).astype(np.uint8)
LABELS = RANDOM.randint(0, 10, 30).astype(np.uint8)


def check_grey(split, name):
    assert split.name == name
    assert [a.shape for a in split] == [(20, 28, 28), (20,), (10, 28, 28), (10,)]
    assert [a.dtype for a in split] == [np.float32, np.int32, np.float32, np.int32]
    np.testing.assert_array_equal(split.test_y, LABELS[20:])
    mean, deviation = GREY[:20].mean(), GREY[:20].std()
    np.testing.assert_allclose(split.test_x, (GREY[20:] - mean) / deviation, atol=1e-5)


def test_mnist_is_read_and_scaled_by_its_training_part(serve, monkeypatch):
    file = io.BytesIO()
    np.savez(file, x_train=GREY[:20], y_train=LABELS[:20], x_test=GREY[20:], y_test=LABELS[20:])
    monkeypatch.setattr(download, "MNIST", serve("mnist.npz", file.getvalue()))
    check_grey(data.mnist(fallback=False), "mnist")


def test_no_pickle_is_opened(serve, monkeypatch):
    file = io.BytesIO()
    np.savez(file, x_train=np.array([{"code": "would run"}], object))
    monkeypatch.setattr(download, "MNIST", serve("mnist.npz", file.getvalue()))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.mnist()


def idx(array):
    header = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def test_fashion_mnist_is_read_and_scaled_by_its_training_part(serve, monkeypatch):
    arrays = (GREY[:20], LABELS[:20], GREY[20:], LABELS[20:])
    remotes = tuple(serve(f"part-{i}.gz", idx(array)) for i, array in enumerate(arrays))
    monkeypatch.setattr(download, "FASHION_MNIST", remotes)
    check_grey(data.fashion_mnist(fallback=False), "fashion_mnist")


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01\0\0\0\x01abcd", b"\0\0\x08\x01\0\0\0\x05abc"])
def test_a_file_that_is_not_idx_is_an_error(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="IDX file of unsigned bytes was expected"):
        download.read_idx(path)


def archive(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return file.getvalue()


def cifar_members():
    records = RANDOM.randint(0, 256, (6, 4, 3073)).astype(np.uint8)
    records[..., 0] %= 10
    names = (*download.CIFAR10_TRAIN, download.CIFAR10_TEST)
    return records, [(name, part.tobytes()) for name, part in zip(names, records, strict=True)]


def test_cifar_is_read_in_memory_whatever_else_is_in_the_archive(serve, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "CIFAR10_RECORDS", 4)
    records, members = cifar_members()
    evil = [("../../evil", b"x"), (str(tmp_path / "evil"), b"x"), ("cifar-10-batches-bin/link", None)]
    remote = serve("cifar.tar.gz", archive(evil + members[::-1]))
    monkeypatch.setattr(download, "CIFAR10", remote)
    split = data.cifar10(fallback=False)
    assert split.name == "cifar10"
    assert [a.shape for a in split] == [(20, 32, 32, 3), (20,), (4, 32, 32, 3), (4,)]
    np.testing.assert_array_equal(split.train_y, records[:5, :, 0].ravel())
    # Planes of red, green and blue in the file; channels last in the array.
    green = records[:5, :, 1 + 1024 : 1 + 2048].reshape(20, 32, 32).astype(float)
    np.testing.assert_allclose(split.train_x[..., 1], (green - green.mean()) / green.std(), atol=1e-5)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "cifar.tar.gz"]


@pytest.mark.parametrize("damage", ["missing", "link", "short"])
def test_an_archive_without_its_files_is_an_error(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(download, "CIFAR10_RECORDS", 4)
    _, members = cifar_members()
    name, content = members[2]
    members[2] = {"missing": ("other", content), "link": (name, None), "short": (name, content[:-1])}[damage]
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(archive(members))
    with pytest.raises(ValueError, match=rf"without finding {name}, a regular file"):
        download.read_cifar10(path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_offline_there_are_digits_and_a_loud_warning(monkeypatch, name):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(download, "MNIST", UNREACHABLE)
    monkeypatch.setattr(download, "FASHION_MNIST", (UNREACHABLE,) * 4)
    monkeypatch.setattr(download, "CIFAR10", UNREACHABLE)
    with pytest.warns(
        data.OfflineWarning, match=rf"(?s)NOT {name} BUT DIGITS.*refused.*{name}\(fallback=False\)"
    ) as seen:
        split = getattr(data, name)()
    assert seen[0].filename == __file__
    assert split.name == "digits"
    assert split.train_x.shape == ((1437, 8, 8, 1) if name == "cifar10" else (1437, 8, 8))
    np.testing.assert_array_equal(split.train_x.reshape(-1, 8, 8), data.digits().train_x)
    with pytest.raises(data.DownloadError, match="refused"):
        getattr(data, name)(fallback=False)
