"Fetching weights from a real server on the loopback: what a page of the documentation cannot show."
import os
import subprocess
import sys
import threading
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zsad.models import weights as W

DATA = bytes(range(256))*8192  # 2 MiB: more than one block
CUT = 700_001                  # where a bad line breaks


class Handler(BaseHTTPRequestHandler):
    "The first part of the path says how the server behaves."
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def do_GET(self):
        how = self.path.split('/')[1]
        rng = self.headers.get('Range')
        self.server.log.append((how, rng))
        n = sum(h == how for h, _ in self.server.log)
        start = int(rng.split('=')[1].rstrip('-')) if rng and how != 'norange' else 0
        if how == 'absent': return self.send_error(404)
        if how == 'busy' and n < 3: return self.send_error(503)
        if how == 'html': return self.answer(200, b'<title>Log in</title>', type='text/html')
        if start >= len(DATA): return self.answer(416, b'', total=f'bytes */{len(DATA)}')
        body = DATA[start:]
        if how == 'more': return self.stream(body + b'x'*10_000_000)
        if how == 'lies': return self.answer(200, body + b'x'*10_000_000)
        if how == 'slow': threading.Event().wait(.5)
        send = body
        if how == 'breaks' and n <= 3: send = body[:CUT]
        if how == 'dead': send = b'' if start else body[:CUT]
        if how == 'unsaid': return self.stream(body)
        self.answer(206 if start else 200, send, said=len(body), total=f'bytes {start}-{len(DATA)-1}/{len(DATA)}' if start else None)

    def answer(self, status, body, said=None, type='application/octet-stream', total=None):
        self.send_response(status)
        self.send_header('Content-Type', type)
        self.send_header('Content-Length', str(len(body) if said is None else said))
        if total: self.send_header('Content-Range', total)
        self.end_headers()
        self.write(body)
        if said is not None and said > len(body): self.close_connection = True

    def stream(self, body):  # no Content-Length: the end of the connection is the end of the file
        self.send_response(200)
        self.send_header('Connection', 'close')
        self.end_headers()
        self.write(body)
        self.close_connection = True

    def write(self, body):
        try: self.wfile.write(body)
        except OSError: self.close_connection = True


@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.log = []
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch): monkeypatch.setattr(W.time, 'sleep', lambda s: None)


@pytest.fixture
def make(server):
    def make(how, **kw):
        return replace(W.WeightFile(f'net/{how}.bin', f'http://127.0.0.1:{server.server_address[1]}/{how}/f', len(DATA)/1e6, sha256(DATA).hexdigest(),
                                    'none', size=len(DATA)), **kw)
    return make


def left(d): return sorted(p.name for p in Path(d).rglob('*') if p.is_file() and p.suffix != '.lock')


def begin(d, f, data):
    part = Path(d)/f'{f.name}.part'
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(data)


def test_whole(make, tmp_path, server):
    p = W.fetch_file(make('ok'), tmp_path, progress=False)
    assert p.read_bytes() == DATA and left(tmp_path) == ['ok.bin']
    W.fetch_file(make('ok'), tmp_path, progress=False)
    assert len(server.log) == 1, 'what is there and right is not fetched again'


def test_bar(make, tmp_path, capfd):
    W.fetch_file(make('ok'), tmp_path, progress=True)
    err = capfd.readouterr().err
    assert 'ok.bin' in err and '100%' in err and '2.10M/2.10M' in err


def test_resumes(make, tmp_path, server):
    f = make('ok')
    begin(tmp_path, f, DATA[:CUT])
    assert W.fetch_file(f, tmp_path, progress=False).read_bytes() == DATA
    assert server.log == [('ok', f'bytes={CUT}-')]


def test_server_without_range(make, tmp_path):
    f = make('norange')
    begin(tmp_path, f, DATA[:CUT])
    assert W.fetch_file(f, tmp_path, progress=False).read_bytes() == DATA


def test_part_that_is_complete(make, tmp_path, server):
    f = make('ok')
    begin(tmp_path, f, DATA)
    assert W.fetch_file(f, tmp_path, progress=False).read_bytes() == DATA
    assert server.log == [], 'with a known size nobody need be asked'
    g = make('ok', name='net/unknown.bin', size=None)
    begin(tmp_path, g, DATA)
    assert W.fetch_file(g, tmp_path, progress=False).read_bytes() == DATA
    assert server.log == [('ok', f'bytes={len(DATA)}-')], 'without one, status 416 says so'


def test_part_that_is_too_long(make, tmp_path):
    f = make('ok')
    begin(tmp_path, f, DATA + b'more')
    assert W.fetch_file(f, tmp_path, progress=False).read_bytes() == DATA


def test_broken_line_goes_on(make, tmp_path, server):
    assert W.fetch_file(make('breaks'), tmp_path, progress=False).read_bytes() == DATA
    assert server.log == [('breaks', None), ('breaks', f'bytes={CUT}-'), ('breaks', f'bytes={2*CUT}-')]  # the third break lies beyond the end


def test_line_that_stays_dead_keeps_the_part(make, tmp_path):
    f = make('dead')
    with pytest.raises(W.FetchError, match=f'broke 5 times.*keeps {CUT:,} bytes'): W.fetch_file(f, tmp_path, progress=False)
    assert left(tmp_path) == ['dead.bin.part']
    ok = make('ok', name=f.name)
    assert W.fetch_file(ok, tmp_path, progress=False).read_bytes() == DATA


def test_busy_server(make, tmp_path, server):
    assert W.fetch_file(make('busy'), tmp_path, progress=False).read_bytes() == DATA
    assert len(server.log) == 3


def test_length_unsaid(make, tmp_path):
    assert W.fetch_file(make('unsaid'), tmp_path, progress=False).read_bytes() == DATA


def test_wrong_checksum(make, tmp_path):
    f = make('ok', sha256='0'*64)
    with pytest.raises(W.FetchError, match='checksum .* instead of 000.* removed'): W.fetch_file(f, tmp_path, progress=False)
    assert left(tmp_path) == []


def test_prefix_of_a_checksum(make, tmp_path):
    W.fetch_file(make('ok', sha256=sha256(DATA).hexdigest()[:8]), tmp_path, progress=False)
    with pytest.raises(W.FetchError): W.fetch_file(make('ok', name='net/b.bin', sha256='00000000'), tmp_path, progress=False)


def test_damaged_file_is_replaced(make, tmp_path):
    f = make('ok')
    (tmp_path/'net').mkdir()
    (tmp_path/f.name).write_bytes(DATA[:-1])
    with pytest.warns(UserWarning, match='set aside as ok.bin.bad'): W.fetch_file(f, tmp_path, progress=False)
    assert (tmp_path/f.name).read_bytes() == DATA and left(tmp_path) == ['ok.bin', 'ok.bin.bad']


def test_server_announces_too_much(make, tmp_path):
    with pytest.raises(W.FetchError, match='offers 12,097,152 bytes, but the published file has 2,097,152'): W.fetch_file(make('lies'), tmp_path, progress=False)


def test_server_sends_too_much(make, tmp_path):
    for size in [len(DATA), None]:
        with pytest.raises(W.FetchError, match='sends more than'): W.fetch_file(make('more', size=size), tmp_path, progress=False)
        assert left(tmp_path) == []


def test_login_page(make, tmp_path):
    f = make('html', size=None)
    begin(tmp_path, f, DATA[:CUT])
    with pytest.raises(W.FetchError, match='web page'): W.fetch_file(f, tmp_path, progress=False)
    assert left(tmp_path) == ['html.bin.part'], 'what was fetched before is kept'


def test_absent(make, tmp_path, server):
    with pytest.raises(W.FetchError, match='404'): W.fetch_file(make('absent'), tmp_path, progress=False)
    assert len(server.log) == 1, 'a server that says no is not asked again'


def test_full_disk(make, tmp_path):
    with pytest.raises(W.FetchError, match='MB free, but net/ok.bin needs'): W.fetch_file(make('ok', size=None, size_mb=1e12), tmp_path, progress=False)


def test_no_internet(tmp_path, monkeypatch):
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s: port = s.server_address[1]  # closed again: nobody listens there
    f = W.WeightFile('net/x.bin', f'http://127.0.0.1:{port}/ok/f', 2, '00', 'none')
    monkeypatch.setitem(W.PROFILES, 'paper', W.Profile(clip=f))
    with pytest.raises(W.FetchError) as e: W.fetch('paper', tmp_path, progress=False)
    for word in ['cannot reach', '--weights tiny', 'zsad fetch', 'ZSAD_HOME']: assert word in str(e.value)


def test_profile(make, tmp_path, monkeypatch, server):
    f = make('ok', beside=(make('ok', name='net/config.json'),))
    monkeypatch.setitem(W.PROFILES, 'paper', W.Profile(clip=f, sam=make('ok', name='sam.pth')))
    monkeypatch.setenv('ZSAD_HOME', str(tmp_path))
    assert [r['present'] for r in W.weights_status('paper')] == [False, False]
    got = W.fetch('paper', progress=False)
    assert got == dict(clip=tmp_path/'net'/'ok.bin', sam=tmp_path/'sam.pth') and (tmp_path/'net'/'config.json').exists()
    assert [r['present'] for r in W.weights_status('paper')] == [True, True] and W.weights_path('paper', 'sam') == tmp_path/'sam.pth'


def test_two_processes(make, tmp_path, server):
    f = make('slow')
    code = f'from zsad.models.weights import *\nprint(fetch_file({f!r}, {str(tmp_path)!r}, progress=False))'
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent)}
    procs = [subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for p in procs:
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0 and out.strip().endswith('slow.bin'), err
    assert (tmp_path/f.name).read_bytes() == DATA and len(server.log) == 1 and left(tmp_path) == ['slow.bin']
