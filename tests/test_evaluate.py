"""Killed at random moments, `zsad evaluate` goes on and ends with the same bytes; two machines make one table."""
import json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
from zsad.data.synth import write_visa

METHODS = 'vvv,clip-ac,winclip,april-gan'


def command(*words): return [sys.executable, '-m', 'zsad.app.cli', *map(str, words)]


def run(*words, **kwargs): return subprocess.run(command(*words), capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kwargs)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return write_visa(tmp_path_factory.mktemp('data')/'tree', ['hex nut', 'cookie', 'cork'], count=8, size=(160, 200), seed=5)


@pytest.fixture(scope='module')
def whole(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'out'
    done = run('evaluate', '--root', tree, '--method', METHODS, '--names', 'words', '--protocol', 'native,april-518', '--out', out)
    assert done.returncode == 0, done.stderr
    return out


def records(out): return [p for p in out.rglob('*.jsonl')]


def test_ten_kills_and_the_same_bytes(tree, whole, tmp_path):
    out, chance, killed = tmp_path/'out', random.Random(0), 0
    words = command('evaluate', '--root', tree, '--method', METHODS, '--names', 'words', '--protocol', 'native,april-518', '--out', out)
    def written(): return sum(p.read_bytes().count(b'\n') for p in records(out)) if out.exists() else 0
    total = sum(p.read_bytes().count(b'\n') for p in records(whole))
    for i in range(10):
        p = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        goal = written() + chance.randint(1, total//11)
        while p.poll() is None and written() < goal: time.sleep(.002)
        time.sleep(chance.random()*.2)
        if p.poll() is None: p.send_signal(signal.SIGKILL); killed += 1
        p.wait()
    assert killed >= 8
    scored = {p: p.stat().st_size for p in records(out)}
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out/'metrics.csv').read_bytes() == (whole/'metrics.csv').read_bytes()
    for p in records(out):
        keys = [json.loads(l)['key'] for l in p.read_text().splitlines() if '"score"' in l]
        assert len(keys) == len(set(keys)), f'a photo was scored twice in {p}'
    tables = [run('tables', o, '--to', 'csv').stdout for o in (out, whole)]
    assert tables[0] == tables[1] and 'april-518' in tables[0]


def test_two_machines(tree, whole, tmp_path):
    for name, some in (('left', 'hex_nut,cork'), ('right', 'cookie')):
        assert run('evaluate', '--root', tree, '--method', 'clip-ac', '--names', 'words', '--categories', some, '--out', tmp_path/name).returncode == 0
    both = run('tables', f'{tmp_path/"left"},{tmp_path/"right"}', '--to', 'csv').stdout
    alone = run('tables', whole, '--to', 'csv').stdout
    wanted = [l for l in alone.splitlines() if l.startswith('clip-ac,') and ',native,' in l]
    assert [l for l in both.splitlines() if l.startswith('clip-ac,')] == wanted and any(',mean,' in l for l in wanted)


def test_a_second_process_is_refused(tree, tmp_path):
    from filelock import FileLock
    words = ('evaluate', '--root', tree, '--method', 'clip-ac', '--names', 'words', '--out', tmp_path/'out')
    assert run(*words).returncode == 0
    folder = next(p.parent for p in (tmp_path/'out').rglob('run.json'))
    with FileLock(folder/'.lock'): done = run(*words)
    assert done.returncode == 2 and 'another process works on' in done.stderr


def test_damage_is_named(tree, tmp_path):
    hurt = shutil.copytree(tree, tmp_path/'tree')
    victim = next((hurt/'cork'/'Data'/'Images'/'Anomaly').iterdir())
    victim.write_bytes(victim.read_bytes()[:300])
    words = ('evaluate', '--root', hurt, '--method', 'clip-ac', '--names', 'words', '--out', tmp_path/'out')
    done = run(*words)
    assert done.returncode == 1 and 'cork' in done.stderr and victim.name in done.stderr and 'Traceback' not in done.stderr
    text = (tmp_path/'out'/'metrics.csv').read_text()
    assert ',cookie,' in text and ',cork,' not in text and ',mean,' not in text


@pytest.mark.parametrize('name, content', [('run.json', '{'), ('cookie.jsonl', 'no json\n')])
def test_a_damaged_record_is_named(whole, tmp_path, name, content):
    out = shutil.copytree(whole, tmp_path/'out')
    file = next(out.rglob(name))
    file.write_text(content)
    done = run('tables', out)
    assert done.returncode == 2 and name in done.stderr and 'Traceback' not in done.stderr
