"A wheel built from a clean clone holds every subpackage and the weights, and works in a new environment outside the repository."
import os, shutil, subprocess, sys, sysconfig, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*words, **kw):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(list(map(str, words)), env=env, capture_output=True, text=True, encoding='utf-8', timeout=600, **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    if shutil.which('git') is None or not (ROOT/'.git').exists(): pytest.skip('needs the git repository')
    tmp = tmp_path_factory.mktemp('wheel')
    run('git', 'clone', '-q', ROOT, tmp/'clone')
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp/'dist', tmp/'clone')
    return next((tmp/'dist').glob('zsad-*.whl')), tmp


def test_contents(wheel):
    path, tmp = wheel
    held = set(zipfile.ZipFile(path).namelist())
    tracked = run('git', 'ls-files', 'zsad', cwd=tmp/'clone').splitlines()
    assert {f for f in tracked if f.endswith(('.py', '.safetensors', '.csv', '.json'))} <= held
    assert {f'zsad/models/tiny/{m}.safetensors' for m in ('clip', 'clipseg', 'sam', 'isnet')} <= held
    packages = {f.rpartition('/')[0] for f in held if f.startswith('zsad/') and f.endswith('.py')}
    assert {f'zsad/{p}' for p in ('data', 'models', 'pipeline', 'train', 'app')} <= packages
    assert all(f'{p}/__init__.py' in held for p in packages)
    assert not [f for f in held if f.startswith(('tests', 'nbs', 'build'))]


def test_new_environment(wheel):
    path, tmp = wheel
    run(sys.executable, '-m', 'venv', '--without-pip', tmp/'env')
    bin = tmp/'env'/('Scripts' if os.name == 'nt' else 'bin')
    site = Path(run(bin/'python', '-c', "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site/'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n' + sysconfig.get_path('platlib') + '\n', encoding='utf-8')
    run(sys.executable, '-m', 'pip', '--python', bin/('python.exe' if os.name == 'nt' else 'python'), 'install', '-q', '--no-deps', '--no-index', '--ignore-installed', path)
    where = run(bin/'python', '-c', 'import zsad; print(zsad.__file__)', cwd=tmp).strip()
    assert Path(where).resolve().is_relative_to((tmp/'env').resolve())
    assert run(bin/'zsad', '--version', cwd=tmp).startswith('zsad ')
    assert run(bin/'zsad', 'info', cwd=tmp).split('weights tiny:')[1].count(' here ') == 5
    said = run(bin/'zsad', 'demo', '--out', 'demo', cwd=tmp)
    assert 'scored 8 of 8' in said and (tmp/'demo'/'report'/'report.html').stat().st_size > 10_000
