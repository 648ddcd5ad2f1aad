"Datasets from a real server on the loopback, and archives that no honest program would write."
import io
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zsad.data import fetch as F
from zsad.data.mvtec import MvtecDataset
from zsad.data.synth import write_visa
from zsad.models import weights as W

ROOT = Path(__file__).resolve().parent.parent


def content(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in Path(root).rglob('*') if p.is_file()}


def left(d): return sorted(p.name for p in Path(d).iterdir() if p.suffix != '.lock')


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return write_visa(tmp_path_factory.mktemp('data')/'tree', ['hex nut', 'cookie'], count=4, size=64)


@pytest.fixture(scope='module')
def archive(tree):
    with tarfile.open(tree.parent/'small.tar', 'w') as tar:  # one folder above the objects, and a licence beside it
        tar.add(tree, 'VisA'); tar.addfile(tarfile.TarInfo('LICENSE'))
    return tree.parent/'small.tar'


class Handler(BaseHTTPRequestHandler):
    "Serves one file with ranges; under /breaks the first connection closes in the middle."
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def do_GET(self):
        data, rng = self.server.data, self.headers.get('Range')
        start = int(rng.split('=')[1].rstrip('-')) if rng else 0
        self.server.log.append(rng)
        body = data[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', 'application/x-tar')
        self.send_header('Content-Length', str(len(body)))
        if start: self.send_header('Content-Range', f'bytes {start}-{len(data)-1}/{len(data)}')
        self.end_headers()
        if self.path.startswith('/breaks') and len(self.server.log) == 1: body, self.close_connection = body[:len(body)//2], True
        self.wfile.write(body)


@pytest.fixture
def server(archive):
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.log, s.data = [], archive.read_bytes()
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def entry(archive, url, **kw):
    f = W.WeightFile('small.tar', url, archive.stat().st_size/1e6, sha256(archive.read_bytes()).hexdigest(), 'none', size=archive.stat().st_size)
    return replace(F.DATASETS['visa'], **{**dict(file=f, terms='rendered', pictures=dict(train=2, test=6), unpacked_mb=1), **kw})


@pytest.fixture
def published(server, archive):
    return lambda how='ok', **kw: entry(archive, f'http://127.0.0.1:{server.server_address[1]}/{how}/small.tar', **kw)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch): monkeypatch.setattr(W.time, 'sleep', lambda s: None)


def test_breaks_off_once_and_goes_on(published, server, tree, tmp_path, capsys):
    root = F.fetch_dataset(published('breaks'), tmp_path, progress=False)
    assert content(root) == content(tree) and left(tmp_path) == ['visa']
    assert server.log == [None, f'bytes={len(server.data)//2}-']
    assert capsys.readouterr().out == 'rendered\n', 'the licence is shown'


def test_a_second_call_does_nothing(published, server, tmp_path, capsys):
    root = F.fetch_dataset(published(), tmp_path, progress=False)
    when = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    capsys.readouterr()
    assert F.fetch_dataset(published(), tmp_path, progress=False) == root
    assert len(server.log) == 1 and capsys.readouterr().out == ''
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.suffix != '.lock'} == {p: t for p, t in when.items() if p.suffix != '.lock'}


def test_bar(published, tmp_path, capfd):
    F.fetch_dataset(published(), tmp_path, progress=True)
    err = capfd.readouterr().err
    assert 'small.tar' in err and 'unpack small.tar' in err and '100%' in err


def test_wrong_checksum(published, tmp_path):
    d = published()
    with pytest.raises(W.FetchError, match='instead of 000'): F.fetch_dataset(replace(d, file=replace(d.file, sha256='0'*64)), tmp_path, progress=False)
    assert left(tmp_path) == []


def test_own_file(published, archive, tree, tmp_path, server):
    root = F.fetch_dataset(published(), tmp_path, archive, progress=False)
    assert content(root) == content(tree) and server.log == [] and archive.exists()


def test_no_internet(archive, tmp_path):
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s: port = s.server_address[1]  # closed again: nobody listens there
    with pytest.raises(W.FetchError) as e: F.fetch_dataset(entry(archive, f'http://127.0.0.1:{port}/x'), tmp_path, progress=False)
    for word in ('cannot be reached', F.DATASETS['visa'].page, 'zsad fetch visa --archive FILE'): assert word in str(e.value)
    assert 'weights' not in str(e.value), 'the advice for weights does not help here'


def test_no_room_before_anything_is_loaded(published, server, tmp_path):
    with pytest.raises(W.FetchError, match='MB free, but visa needs'): F.fetch_dataset(published(unpacked_mb=1e9), tmp_path, progress=False)
    assert server.log == []


def test_two_processes(archive, tmp_path, server):
    d = entry(archive, f'http://127.0.0.1:{server.server_address[1]}/ok/small.tar')
    code = (f'from dataclasses import replace\nfrom zsad.data.fetch import *\nfrom zsad.models.weights import WeightFile\n'
            f'd = replace(DATASETS["visa"], file={d.file!r}, pictures={d.pictures!r}, unpacked_mb=1)\nprint(fetch_dataset(d, {str(tmp_path)!r}, progress=False))')
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    procs = [subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for p in procs:
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0 and out.strip().endswith('visa'), err
    assert len(server.log) == 1 and left(tmp_path) == ['visa']


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_killed_while_unpacking(tree, tmp_path):
    big = tmp_path/'big.tar'
    with tarfile.open(big, 'w') as tar:
        tar.add(tree, '.')
        for i in range(3000): tar.addfile(tarfile.TarInfo(f'extra/{i}'))
    d = entry(big, big.as_uri())
    code = (f'from dataclasses import replace\nfrom zsad.data.fetch import *\nfrom zsad.models.weights import WeightFile\n'
            f'd = replace(DATASETS["visa"], file={d.file!r}, pictures={d.pictures!r}, unpacked_mb=1)\nfetch_dataset(d, {str(tmp_path/"home")!r}, progress=False)')
    p = subprocess.Popen([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(ROOT)})
    half, end = tmp_path/'home'/'.visa.unpacking', time.monotonic() + 60
    while not (half/'extra').exists() and p.poll() is None and time.monotonic() < end: pass
    p.send_signal(signal.SIGKILL); p.wait()
    assert half.exists() and not (tmp_path/'home'/'visa').exists(), 'no half of a dataset under its name'
    root = F.fetch_dataset(d, tmp_path/'home', progress=False)
    assert len(list((root/'extra').iterdir())) == 3000 and left(tmp_path/'home') == ['visa']


def test_mvtec_from_a_file(tree, tmp_path):
    import shutil
    own, visa = tmp_path/'mvtec_tree', F.VisaDataset(tree)
    for s in visa:
        q = own/s.obj/'test'/('dent' if s.label else 'good')/s.path.name
        q.parent.mkdir(parents=True, exist_ok=True); shutil.copy(s.path, q)
        if s.label:
            (m := own/s.obj/'ground_truth'/'dent'/f'{q.stem}_mask.png').parent.mkdir(parents=True, exist_ok=True); shutil.copy(s.mask_path, m)
    for s in F.VisaDataset(tree, split='train'):
        q = own/s.obj/'train'/'good'/s.path.name
        q.parent.mkdir(parents=True, exist_ok=True); shutil.copy(s.path, q)
    with tarfile.open(tmp_path/'m.tar.xz', 'w:xz') as tar: tar.add(own, '.')
    data = (tmp_path/'m.tar.xz').read_bytes()
    d = F.DATASETS['mvtec']
    d = replace(d, file=replace(d.file, sha256=sha256(data).hexdigest(), size=len(data)), pictures=dict(train=2, test=6), unpacked_mb=1)
    with pytest.raises(W.FetchError, match='asks for a form'): F.fetch_dataset(d, tmp_path/'home', progress=False)
    root = F.fetch_dataset(d, tmp_path/'home', tmp_path/'m.tar.xz', progress=False)
    assert len(MvtecDataset(root)) == 6 and content(root) == content(own)
    next((root).rglob('*_mask.png')).unlink()
    with pytest.raises(W.FetchError, match='1 masks are missing, the first for'): F.fetch_dataset(d, tmp_path/'home', progress=False)


# ------------------------------------------------------------------ hostile archives, byte by byte
def header(name=b'x', size=b'00000000000', type=b'0', link=b'', prefix=b'', tail=b''):
    "A tar header with fields as given, and a checksum that is right."
    h = bytearray(512)
    def put(at, b): h[at:at + len(b)] = b
    put(0, name); put(100, b'0000644\0'); put(108, b'0000000\0'); put(116, b'0000000\0'); put(124, size); put(136, b'00000000000\0')
    put(156, type); put(157, link); put(257, b'ustar\x0000'); put(345, prefix); put(386, tail)
    put(148, b' '*8); put(148, b'%06o\0 ' % sum(h))
    return bytes(h)


def base256(n): return bytes([0xff if n < 0 else 0x80]) + (n % (1 << 88)).to_bytes(11, 'big')


def pax(**kw):
    "A pax header member."
    body = b''
    for k, v in kw.items():
        rec = f' {k.replace("__", ".")}={v}\n'.encode()
        n = len(rec) + 1
        while len(str(n)) + len(rec) != n: n += 1
        body += str(n).encode() + rec
    return header(b'pax', b'%011o' % len(body), b'x') + body.ljust(-(-len(body)//512)*512, b'\0')


END = bytes(1024)
FILE = header(b'good', b'%011o' % 4) + b'good'.ljust(512, b'\0')
HOSTILE = {
    'a parent': (FILE + header(b'../escaped') + END, 'no plain path'),
    'a parent further on': (header(b'a/b/../../../escaped') + END, 'no plain path'),
    'absolute': (header(b'/tmp/zsad-escaped') + END, 'no plain path'),
    'absolute by the prefix': (header(b'escaped', prefix=b'/tmp') + END, 'no plain path'),
    'a parent by pax': (pax(path='../escaped') + header() + END, 'no plain path'),
    'a parent as a folder': (header(b'../escaped/', type=b'5') + END, 'no plain path'),
    'a disk of Windows': (header(b'C:\\escaped') + END, 'no plain path'),
    'no text': (header(b'a\xff\xfe') + END, 'no plain path'),
    'a symbolic link': (header(b'l', type=b'2', link=b'..') + header(b'l/escaped') + END, 'a symbolic link'),
    'a link by pax': (pax(linkpath='/etc') + header(b'l', type=b'2') + END, 'a symbolic link'),
    'a hard link': (FILE + header(b'l', type=b'1', link=b'/etc/passwd') + END, 'a hard link'),
    'a device': (header(b'd', type=b'3') + END, 'a device'),
    'a block device': (header(b'd', type=b'4') + END, 'a device'),
    'a pipe': (header(b'p', type=b'6') + END, 'a pipe'),
    'an unknown type': (header(b'u', type=b'Z') + END, 'of a special type'),
    'old sparse': (header(b's', b'%011o' % 0, b'S', tail=b'00000000000\0' + b'77777777777\0') + END, 'of a special type|cannot be unpacked'),
    'sparse by pax': (pax(GNU__sparse__major='1', GNU__sparse__minor='0', GNU__sparse__name='s', GNU__sparse__realsize='9'*18) + header(b's', b'%011o' % 512) + b'1\n0\n0\n'.ljust(512, b'\0') + END, 'special type|is said to have|cannot be unpacked'),
    'huge': (header(b'h', b'77777777777') + END, 'is said to have 8,589,934,591 bytes'),
    'huger': (header(b'h', base256(1 << 70)) + END, 'is said to have'),
    'huge by pax': (pax(size=1 << 60) + header(b'h') + END, 'is said to have'),
    'negative': (FILE + header(b'n', base256(-1024)) + END, 'is said to have -1,024|cannot be unpacked'),
    'negative by pax': (FILE + pax(size=-1024) + header(b'n') + END, 'is said to have -1,024|cannot be unpacked'),
    'a negative header': (header(b'x', base256(-512), b'x') + FILE + END, 'a header wants|cannot be unpacked'),
    'a header of ten gigabytes': (header(b'x', base256(10**10), b'x') + FILE + END, 'a header wants'),
    'a name of ten gigabytes': (header(b'././@LongLink', base256(10**10), b'L') + FILE + END, 'a header wants'),
    'headers upon headers': (pax(comment='x')*3000 + FILE + END, 'a header wants'),
    'the same twice': (FILE + FILE + END, 'exists'),
    'a file as a folder': (FILE + header(b'good/x') + END, 'cannot be unpacked'),
    'a folder as a file': (header(b'good/', type=b'5') + FILE + END, 'cannot be unpacked'),
    'breaks off in a file': (header(b'b', b'%011o' % 4096) + b'only this', 'breaks off'),
    'no archive': (b'<html>Log in</html>'*100, 'cannot be unpacked'),
    'empty': (b'', 'cannot be unpacked'),
    'torn xz': (lzma.compress(header(b'f', b'%011o' % 4096) + bytes(i*i//7 % 256 for i in range(4096)) + END)[:-300], 'cannot be unpacked'),
    'wrong xz': (b'\xfd7zXZ\0' + b'\0'*100, 'cannot be unpacked'),
}


@pytest.mark.parametrize('name', HOSTILE)
@pytest.mark.parametrize('xz', [False, True], ids=['plain', 'xz'])
def test_hostile(name, xz, tmp_path):
    data, says = HOSTILE[name]
    if xz and 'xz' in name: pytest.skip('is packed already')
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'a.tar').write_bytes(lzma.compress(data) if xz else data)
    with pytest.raises(W.FetchError, match=says) as e: F.unpack(tmp_path/'in'/'a.tar', tmp_path/'in'/'out', progress=False)
    assert str(tmp_path/'in'/'a.tar') in str(e.value) and str(e.value).endswith('nothing was unpacked')
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['a.tar', 'in'] and not Path('/tmp/zsad-escaped').exists()


def test_bomb_needs_neither_time_nor_memory(tmp_path):
    "Four gigabytes of zeros in less than a megabyte, refused at once; as a file, and as many."
    import tracemalloc
    comp, a = lzma.LZMACompressor(preset=0), tmp_path/'bomb.xz'
    with a.open('wb') as f:
        for i in range(8):
            f.write(comp.compress(header(b'z%d' % i, b'%011o' % (40 << 20))))
            for _ in range(10): f.write(comp.compress(bytes(4 << 20)))
        f.write(comp.flush())
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(W.FetchError, match='more than the 100,000,000 bytes'): F.unpack(a, tmp_path/'out', F.Limits(total=100_000_000), progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert a.stat().st_size < 1_000_000 and peak < 30_000_000 and time.process_time() - start < 20
    assert not (tmp_path/'out').exists()


def test_honest_archives_of_every_kind(tree, tmp_path):
    "Long names, every format that tarfile writes, folders and empty files come through."
    import shutil
    src = Path(shutil.copytree(tree, tmp_path/'src'))
    deep = src/('a'*90)/('b'*90)/('ü'*40)
    deep.mkdir(parents=True); (deep/'größe.txt').write_bytes(b'x'); (deep/'empty').touch(); (src/'nothing').mkdir()
    for fmt in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path/'a.tar', 'w', format=fmt) as tar: tar.add(src, '.')
        F.unpack(tmp_path/'a.tar', tmp_path/'out', progress=False)
        assert content(tmp_path/'out') == content(src) and (tmp_path/'out'/'nothing').is_dir()
        shutil.rmtree(tmp_path/'out')


@pytest.mark.skipif(os.name == 'nt', reason='rights are others')
def test_rights_do_not_come_along(tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as tar:
        m = tarfile.TarInfo('run'); m.mode = 0o4777; m.size = 1
        tar.addfile(m, io.BytesIO(b'x'))
    F.unpack(tmp_path/'a.tar', tmp_path/'out', progress=False)
    assert (tmp_path/'out'/'run').stat().st_mode & 0o7111 == 0
