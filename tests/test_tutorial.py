"""The tutorial "Your own photos", word by word: its commands and its Python code are taken out of the notebook and run on photos of cookies.

ZSAD_TUTORIAL=all takes all 63 photos instead of 23; `pytest -s` prints how long it took."""
import csv, json, os, re, shlex, shutil, subprocess, sys, time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT/'nbs'/'tutorials'/'own_photos.ipynb'
PHOTOS = next((d for p in ROOT.parents if (d := p/'shared'/'photos'/'cookies').is_dir()), None)
ENV = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), 'MPLBACKEND': 'Agg'}


def section(title):
    "Cells between a heading of the page and the next one of its level, as (kind, text)."
    cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads(PAGE.read_text(encoding='utf-8'))['cells']]
    starts = [i for i, (kind, s) in enumerate(cells) if kind == 'markdown' and s.startswith('## ')] + [len(cells)]
    i = next(i for i in starts[:-1] if cells[i][1] == f'## {title}')
    return cells[i + 1:starts[starts.index(i) + 1]]

def commands(title): return [l for kind, s in section(title) if kind == 'markdown' for block in re.findall(r'^```sh\n(.*?)^```', s, re.M | re.S) for l in block.splitlines()]
def code(title): return '\n'.join(s for kind, s in section(title) if kind == 'code')


def test_the_page_runs_the_commands_that_it_shows():
    for title in ('Scan', 'Pass or fail'):
        ran = re.findall(r"^terminal\('(.*)'\)$", code(title), re.M)
        assert len(commands(title)) == 1 and commands(title) == ran


@pytest.fixture(scope='module')
def followed(tmp_path_factory):
    "A folder in which somebody has followed the page: what each command gave, and the output of the Python code."
    if PHOTOS is None: pytest.skip('needs the photos in ../shared/photos/cookies')
    home, many = tmp_path_factory.mktemp('reader'), os.environ.get('ZSAD_TUTORIAL') == 'all'
    for label, most in (('good', 20), ('bad', 3)):
        (home/'photos'/label).mkdir(parents=True)
        for f in sorted((PHOTOS/label).iterdir())[:None if many else most]: shutil.copy(f, home/'photos'/label)
    shutil.copytree(PHOTOS/'masks', home/'photos'/'masks')
    (home/'photos'/'bad'/'torn.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    start, done = time.perf_counter(), {}
    for title in ('Scan', 'Pass or fail'):
        program, *words = shlex.split(*commands(title))
        assert program == 'zsad'
        done[title] = subprocess.run([sys.executable, '-m', 'zsad.app.cli', *words], cwd=home, env=ENV, capture_output=True, text=True, encoding='utf-8', timeout=1800)
    (home/'loop.py').write_text(code('The same in Python'), encoding='utf-8')
    done['loop'] = subprocess.run([sys.executable, 'loop.py'], cwd=home, env=ENV, capture_output=True, text=True, encoding='utf-8', timeout=1800)
    print(f'\nthe tutorial on {len(list(home.glob("photos/[bg]*/*"))) - 1} photos: {time.perf_counter() - start:.0f} s')
    return home, done

def lines(out): return {r['path']: r for r in map(json.loads, (out/'results.jsonl').read_text(encoding='utf-8').splitlines())}
def photos(home, label='[bg]*'): return sorted(p.relative_to(home/'photos').as_posix() for p in home.glob(f'photos/{label}/*'))


def test_scan(followed):
    home, done = followed
    assert done['Scan'].returncode == 1, done['Scan'].stderr
    rows = lines(home/'zsad-report')
    assert list(rows) == photos(home)
    assert [k for k, r in rows.items() if r['error']] == ['bad/torn.jpg']
    assert all(0 <= r['score'] <= 1 for r in rows.values() if not r['error'])
    assert (home/'zsad-report'/'report.html').stat().st_size > 10_000
    assert all(s in done['Scan'].stdout for s in ('most anomalous first', 'could not score bad/torn.jpg', 'image AUROC of good and bad'))


def test_pass_or_fail(followed):
    home, done = followed
    assert done['Pass or fail'].returncode == 1, done['Pass or fail'].stderr
    said, rows = done['Pass or fail'].stdout, lines(home/'judged')
    good, bad = photos(home, 'good'), photos(home, 'bad')
    assert list(rows) == bad and f'learnt from {len(good)} good photos' in said
    scores = lines(home/'zsad-report')
    limit = float(re.search(r'bad above ([\d.]+)', said)[1])
    above = sorted(scores[k]['score'] for k in good)[-1 if len(good) < 39 else -2]
    assert abs(limit - above) < 1e-3
    assert all(r['bad'] == (r['score'] > limit) for r in rows.values() if not r['error'] and abs(r['score'] - limit) > 1e-3)


def test_loop(followed):
    home, done = followed
    assert done['loop'].returncode == 0, done['loop'].stderr
    rows = list(csv.DictReader(open(home/'results.csv', encoding='utf-8')))
    limited = set(photos(home, 'good')[:20])
    assert [r['photo'] for r in rows] == [f'photos/{k}' for k in photos(home) if k not in limited]
    assert [r['photo'] for r in rows if r['problem']] == ['photos/bad/torn.jpg']
    scores = lines(home/'zsad-report')
    for r in rows:
        if not r['problem']: assert r['verdict'] in ('good', 'bad') and abs(float(r['score']) - scores[r['photo'].removeprefix('photos/')]['score']) < 1e-3
