"The exam of the small weights as a command: killed in the middle, it goes on and ends with the same record."
import json, os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), 'CUDA_VISIBLE_DEVICES': ''}
EXAM = [sys.executable, '-m', 'zsad.train.exam', '--quick', '2', '--systems', 'saliency,median']


def exam(out, workers): return subprocess.run([*EXAM, '--out', str(out), '--workers', str(workers)], env=ENV, capture_output=True, timeout=600)


def timeless(x):
    "The same record without measured times."
    if isinstance(x, dict): return {k: timeless(v) for k, v in x.items() if k not in ('seconds', 'drawn', 'hardware')}
    return [timeless(v) for v in x] if isinstance(x, list) else x


def rows(out): return [timeless(json.loads(line)) for line in (out/'pictures.jsonl').read_text(encoding='utf8').splitlines()]


def kill_after(out, lines, timeout=300):
    "Start the exam and kill it when so many rows are written."
    p = subprocess.Popen([*EXAM, '--out', str(out), '--workers', '1'], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end, file = time.time() + timeout, out/'pictures.jsonl'
    while p.poll() is None and time.time() < end and not (file.exists() and file.read_bytes().count(b'\n') >= lines): time.sleep(.05)
    assert p.poll() is None, 'the exam ended before it could be killed'
    p.kill(); p.wait()


def test_killed_and_resumed(tmp_path):
    whole, broken = tmp_path/'whole', tmp_path/'broken'
    done = exam(whole, 2)
    assert done.returncode == 0, done.stderr.decode()
    kill_after(broken, 5)
    n = len((broken/'pictures.jsonl').read_bytes().splitlines())
    assert 5 <= n < len(rows(whole))
    with (broken/'pictures.jsonl').open('ab') as f: f.write(b'{"key": "detect/he')
    again = exam(broken, 1)
    assert again.returncode == 0, again.stderr.decode()
    assert rows(broken) == rows(whole)
    assert timeless(json.loads((broken/'exam.json').read_text(encoding='utf8'))) == timeless(json.loads((whole/'exam.json').read_text(encoding='utf8')))
    other = subprocess.run([*EXAM[:-1], 'saliency', '--out', str(broken), '--workers', '0'], env=ENV, capture_output=True, timeout=600)
    assert other.returncode != 0 and b'holds another exam' in other.stderr
