"`zsad scan` as a user runs it: in a process of its own, outside the repository, on folders with everything that goes wrong."
import json, os, shutil, signal, subprocess, sys, time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.data.synth import render

ROOT = Path(__file__).resolve().parent.parent
ZSAD = [sys.executable, '-m', 'zsad.app.cli']
ENV = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), 'CUDA_VISIBLE_DEVICES': '', 'COLUMNS': '100'}
HTML_NAME = 'a<img src=x onerror=alert(1)>&"b".png'


def zsad(*words, cwd, **env):
    return subprocess.run([*ZSAD, *map(str, words)], cwd=cwd, env={**ENV, **env}, capture_output=True, timeout=600)


def lines(out): return [json.loads(l) for l in (out/'results.jsonl').read_text(encoding='utf-8').splitlines()]
def timeless(out): return [{**r, 'seconds': 0} for r in lines(out)]


def picture(seed=0, size=(150, 200), defect=None): return render('hex nut', defect, size=size, parts=2, seed=seed).img


def bad_folder(root, reverse=False):
    "Write the worst folder we know; `reverse` writes the same files in the other order. Returns the names."
    img = picture()
    pic = Image.fromarray(img)
    makers = {
        'plain.png': lambda f: pic.save(f),
        'deep/er/größe – 漢字.png': lambda f: Image.fromarray(picture(1)).save(f),
        'deep/16 bit.tiff': lambda f: Image.fromarray(img[..., 0].astype(np.uint16)*257).save(f),
        'cmyk.JPG': lambda f: pic.convert('CMYK').save(f, 'JPEG'),
        'rgba.png': lambda f: pic.convert('RGBA').save(f),
        'one pixel.png': lambda f: Image.new('RGB', (1, 1), 'red').save(f),
        'huge.png': lambda f: Image.new('L', (9000, 9000)).save(f, compress_level=1),
        'empty.png': lambda f: f.touch(),
        'text.png': lambda f: f.write_text('not a picture', encoding='utf-8'),
        'truncated.jpg': lambda f: (pic.save(f, quality=95), f.write_bytes(f.read_bytes()[:3000])),
    }
    if os.name != 'nt': makers[HTML_NAME] = lambda f: pic.save(f)
    if sys.platform == 'linux': makers['not unicode \udce9.png'] = lambda f: pic.save(f)
    for name, make in sorted(makers.items(), reverse=reverse):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        make(root/name)
    (root/'readme.txt').touch()
    return sorted(makers)


class Tags(HTMLParser):
    def __init__(self, s): super().__init__(); self.tags, self.attrs, self.text = [], [], ''; self.feed(s)
    def handle_starttag(self, tag, attrs): self.tags.append(tag); self.attrs += attrs
    def handle_data(self, s): self.text += s


@pytest.fixture(scope='module')
def scanned(tmp_path_factory):
    "The bad folder, scanned from within: the output lies among the pictures."
    root = tmp_path_factory.mktemp('photos')
    names = bad_folder(root)
    return root, names, zsad('scan', '.', '--object', 'hex nut', cwd=root), root/'zsad-report'


BAD = {'empty.png', 'text.png', 'truncated.jpg', 'huge.png'}


def test_a_row_for_each(scanned):
    root, names, done, out = scanned
    assert done.returncode == 1, done.stderr.decode()
    rows = lines(out)
    assert [r['path'] for r in rows] == names
    assert all(list(r) == ['path', 'score', 'seconds', 'error'] for r in rows)
    for r in rows:
        assert (r['error'] is None) == (r['score'] is not None)
        if r['path'] in BAD: assert r['error']
        elif r['path'] != 'one pixel.png': assert r['error'] is None and 0 <= r['score'] <= 1, r
    assert b'Traceback' not in done.stderr
    assert '1 other file left aside' in done.stdout.decode()


def test_maps_and_overlays(scanned):
    root, names, done, out = scanned
    import tifffile
    for r in lines(out):
        if r['error']: continue
        with Image.open(root/r['path']) as pic: hw = pic.size[::-1]
        stem = Path(r['path']).with_suffix('').as_posix()
        amap = tifffile.imread(out/'maps'/f'{stem}.tiff')
        assert amap.dtype == np.float32 and amap.shape == hw and np.isfinite(amap).all()
        with Image.open(out/'overlays'/f'{stem}.png') as pic: assert pic.size[::-1] == hw


def test_report_is_one_safe_file(scanned):
    root, names, done, out = scanned
    text = (out/'report.html').read_text(encoding='utf-8')
    page = Tags(text)
    scored = [r for r in lines(out) if r['error'] is None]
    assert page.tags.count('article') == len(scored)
    assert page.tags.count('img') == 2*len(scored)
    assert not {'script', 'link', 'iframe'} & set(page.tags)
    assert all(v.startswith('data:image/jpeg;base64,') for k, v in page.attrs if k == 'src')
    assert not [k for k, _ in page.attrs if k.startswith('on')]
    assert all(n.encode('utf-8', 'replace').decode() in page.text for n in names)
    assert 'http://' not in text and 'https://' not in text
    shown = [page.text.index(r['path'].encode('utf-8', 'replace').decode()) for r in sorted(scored, key=lambda r: (-r['score'], r['path']))]
    assert shown == sorted(shown)


def test_again_the_same_bytes_and_own_output_is_not_scanned(scanned):
    root, names, done, out = scanned
    def files(): return {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob('*') if f.is_file() and f.name != 'results.jsonl'}
    before = files(), timeless(out)
    assert zsad('scan', '.', '--object', 'hex nut', cwd=root).returncode == 1
    assert (files(), timeless(out)) == before


def test_order_of_folder_and_batch_do_not_matter(scanned, tmp_path):
    root, names, done, out = scanned
    bad_folder(tmp_path/'photos', reverse=True)
    assert zsad('scan', tmp_path/'photos', '--object', 'hex nut', '--batch', 4, '--out', 'other', cwd=tmp_path, PYTHONIOENCODING='ascii').returncode == 1
    a, b = timeless(out), timeless(tmp_path/'other')
    assert [(r['path'], r['error']) for r in a] == [(r['path'], r['error']) for r in b]
    assert max(abs((x['score'] or 0) - (y['score'] or 0)) for x, y in zip(a, b)) <= 1e-5


@pytest.mark.skipif(os.name == 'nt', reason='peak memory of a child is not known on Windows')
def test_memory(tmp_path):
    bad_folder(tmp_path)
    run = subprocess.Popen([*ZSAD, 'scan', '.', '--object', 'hex nut'], cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = os.wait4(run.pid, 0)[2].ru_maxrss*(1 if sys.platform == 'darwin' else 1024)   # of this process alone: RUSAGE_CHILDREN would count what the shell ran before
    run.returncode = 0
    assert peak <= 2e9, f'{peak/1e9:.2f} GB'


def test_good_and_bad_and_masks(tmp_path):
    for label, defect in (('good', None), ('bad', 'missing part')):
        (tmp_path/'nuts'/label).mkdir(parents=True)
        for i in range(2): Image.fromarray(picture(i, defect=defect)).save(tmp_path/'nuts'/label/f'{i}.png')
    (tmp_path/'nuts'/'masks').mkdir()
    Image.new('L', (200, 150)).save(tmp_path/'nuts'/'masks'/'0.png')
    done = zsad('scan', 'nuts', '--object', 'hex nut', '--weights', 'tiny', cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert len(lines(tmp_path/'zsad-report')) == 4
    said = done.stdout.decode()
    assert 'image AUROC of good and bad' in said and '2 good, 2 bad' in said and 'never saw a photo' in said


@pytest.mark.skipif(os.name == 'nt', reason='sends SIGINT')
def test_interrupt_leaves_what_was_done(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(60): Image.fromarray(picture(i % 5, (300, 400))).save(tmp_path/'photos'/f'{i:02}.png')
    run = subprocess.Popen([*ZSAD, 'scan', 'photos', '--object', 'hex nut', '--out', 'out'], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # a test run in the background ignores it
    results = tmp_path/'out'/'results.jsonl'
    while run.poll() is None and not (results.exists() and results.read_bytes().count(b'\n') >= 2): time.sleep(.02)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 130
    n = len(lines(tmp_path/'out'))
    assert 2 <= n < 60
    assert f'Interrupted after {n} of 60 pictures' in (tmp_path/'out'/'report.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('words, says', [
    (['scan', 'photos'], '--object'), (['scan', 'gone', '--object', 'nut'], 'gone'), (['scan', 'empty', '--object', 'nut'], 'empty'),
    (['scan', 'photos', '--object', 'nut', '--weights', 'huge'], 'huge'), (['scan', 'photos', '--object', 'nut', '--method', 'magic'], 'magic'),
    (['scan', 'photos', '--object', 'nut', '--out', 'photos'], 'photos'), (['scan', 'photos', '--object', 'nut', '--colour', 'red'], '--colour'),
    (['scan', 'photos', '--object', 'nut', '--good', 'good'], 'zero-shot'), (['scan', 'photos', '--object', 'nut', '--weights', 'paper'], 'zsad fetch'),
    (['scan'], 'path'), (['scn'], 'scn'), (['render', 'photos'], 'photos'), (['render', 'new', '--kinds', 'some'], 'some'), (['fetch', 'all'], 'all')])
def test_wrong_use_is_one_line(tmp_path, words, says):
    (tmp_path/'photos').mkdir()
    (tmp_path/'empty').mkdir()
    (tmp_path/'good').mkdir()
    for f in ('photos/a.png', 'good/b.png'): Image.fromarray(picture()).save(tmp_path/f)
    done = zsad(*words, cwd=tmp_path, ZSAD_HOME=str(tmp_path/'home'))
    err = done.stderr.decode()
    assert done.returncode == 2 and says in err and 'Traceback' not in err
    assert len([l for l in err.splitlines() if 'error: ' in l]) == 1
    assert (tmp_path/'photos'/'a.png').exists() and not (tmp_path/'zsad-report').exists()


def test_help_does_not_wait_for_torch(tmp_path):
    code = "import sys; from zsad.app.cli import main; c = main(['--help']); assert c == 0 and not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=ENV, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert all(c in done.stdout.decode() for c in ('scan', 'demo', 'render', 'info', 'fetch'))


@pytest.mark.parametrize('command', ['scan', 'demo', 'render', 'info', 'fetch'])
def test_each_help(tmp_path, command):
    done = zsad(command, '--help', cwd=tmp_path)
    assert done.returncode == 0 and 'example' in done.stdout.decode()


def test_script(tmp_path):
    from zsad import __version__
    script = shutil.which('zsad', path=str(Path(sys.executable).parent))
    if script is None: pytest.skip('zsad is not installed in this environment')
    assert subprocess.run([script, '--version'], cwd=tmp_path, capture_output=True, text=True).stdout.strip() == f'zsad {__version__}'
