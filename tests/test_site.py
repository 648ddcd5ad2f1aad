"""What Quarto would complain about, found without Quarto: links, doclinks, alt texts, sizes, the sidebar, and the processing itself."""
import base64, html, json, os, re, shutil, subprocess, sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
PAGES = sorted(p for p in NBS.rglob('*.ipynb') if not p.name.startswith('_') and '.ipynb_checkpoints' not in p.parts)
SITE = 'https://zsad.github.io/zsad/'
name = lambda p: p.relative_to(NBS).as_posix()
each_page = pytest.mark.parametrize('page', PAGES, ids=name)

def cells(path, kind): return [c for c in json.loads(path.read_text(encoding='utf8'))['cells'] if c['cell_type'] == kind]
def text(cell): return ''.join(cell['source'])
def directive(cell, key):
    m = re.search(rf'^#\s*\|\s*{key}(?::\s*(.*))?$', text(cell), re.M)
    return m and (m[1] or '').strip().strip('"\'')
def web(path): return re.sub(r'^\d+_', '', path.stem)

@pytest.fixture(scope='module')
def processed(tmp_path_factory):
    "The notebooks as nbdev hands them to Quarto, and all that it said while it made them."
    home = tmp_path_factory.mktemp('site')
    for f in ('nbs', 'zsad', '.ci', 'settings.ini'):
        (shutil.copytree if (ROOT/f).is_dir() else shutil.copy)(ROOT/f, home/f)
    run = subprocess.run([sys.executable, '.ci/docs.py', '--notebooks'], cwd=home, capture_output=True, text=True, env=os.environ | {'PYTHONPATH': str(home)})
    return home/'_proc', run

def test_processing_is_silent(processed):
    proc, run = processed
    assert run.returncode == 0, run.stderr
    assert run.stdout + run.stderr == ''
    assert {p.relative_to(proc) for p in proc.rglob('*.ipynb')} == {p.relative_to(NBS) for p in PAGES}

def test_signatures_are_plain_and_sources_are_the_pages_own(processed):
    wrong, seen = [], 0
    for page in PAGES:
        module = next((m[1] for c in cells(page, 'code') if (m := re.search(r'^#\|\s*default_exp (\S+)', text(c), re.M))), None)
        for c in cells(processed[0]/name(page), 'code'):
            for t in [''.join(o.get('data', {}).get('text/markdown', '')) for o in c['outputs']]:
                if any('](http' in code for code in re.findall(r'^```.*?^```', t, re.M | re.S)): wrong.append(f'{name(page)}: a link in a code block: {t[:200]}')
                if not (directive(c, 'echo') == 'false' and text(c).strip().split('\n')[-1].startswith('show_doc(')): continue
                seen += 1
                source = re.search(r'\[source\]\(\S+/blob/main/(\S+)#L(\d+)\)', t)
                if not (source and source[1] == f"zsad/{module.replace('.', '/')}.py"): wrong.append(f'{name(page)}: source of {text(c)}: {source and source[0]}')
    assert seen > 400 and not wrong, '\n'.join(wrong)

@lru_cache(None)
def anchors(page):
    "What `#…` on a page can name: headings as Pandoc spells and numbers them, and what has been given an id."
    found, seen = set(), Counter()
    for c in json.loads(page.read_text(encoding='utf8'))['cells']:
        parts = [text(c)] if c['cell_type'] == 'markdown' else [''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', [])]
        for s in parts:
            found |= set(re.findall(r'\{#([\w.:-]+)', s)) | set(re.findall(r'\bid="([^"]+)"', s))
            for h in re.findall(r'^#{1,6}\s+(.+?)\s*$', re.sub(r'^```.*?^```', '', s, flags=re.M | re.S), re.M):
                h = re.sub(r'[^\w\s.-]', '', re.sub(r'\{[^}]*\}$|\[([^\]]*)\]\([^)]*\)', r'\1', h)).strip().lower()
                a = re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', h))
                found.add(a + f'-{seen[a]}'*bool(seen[a]))
                seen[a] += 1
    return found

def links(page):
    "Targets of links and pictures in what a reader sees."
    for c in cells(page, 'markdown') + cells(page, 'code'):
        parts = [text(c)] if c['cell_type'] == 'markdown' else [''.join(o.get('data', {}).get('text/markdown', '')) for o in c['outputs']]
        for s in parts:
            s = re.sub(r'`[^`\n]*`', '', re.sub(r'^```.*?^```', '', s, flags=re.M | re.S))
            yield from (html.unescape(u) for m in re.findall(r'\]\(<?([^()\s>]+(?:\([^()\s]*\))?[^()\s>]*)>?(?:\s+"[^"]*")?\)|(?:href|src|data)="([^"]+)"', s) for u in m if u)

def broken(page, proc):
    "Links of a page that lead nowhere, each with its reason."
    by_web = {(p.parent.relative_to(proc)/web(p)).as_posix(): p for p in proc.rglob('*.ipynb')}
    for url in links(page):
        where, _, anchor = url.partition('#')
        if where.startswith(SITE):
            target = by_web.get(where[len(SITE):].removesuffix('.html') or 'index')
        elif re.match(r'[a-z]+:', where): continue
        elif not where: target = page
        else:
            target = (page.parent/where).resolve()
            if not target.exists(): target = None
        if target is None: yield f'{url}: no such page or file'
        elif anchor and target.suffix == '.ipynb' and anchor not in anchors(target): yield f'{url}: no such heading on {target.name}'

@each_page
def test_links_resolve(page, processed):
    proc, _ = processed
    assert not list(broken(proc/name(page), proc))

def test_a_dead_link_is_found(processed):
    proc, _ = processed
    page = proc/'pipeline'/'dead.ipynb'
    md = '[a](30_foreground.ipynb) [b](31_nowhere.ipynb) [c](30_foreground.ipynb#no-such-heading) ![d](../images/none.svg) [e](#also-none)'
    page.write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source=[md])])))
    try: assert [b.split(':')[0] for b in broken(page, proc)] == ['31_nowhere.ipynb', '30_foreground.ipynb#no-such-heading', '../images/none.svg', '#also-none']
    finally: page.unlink()

SYMBOLS = json.loads(subprocess.run([sys.executable, '-c', 'import json; from zsad._modidx import d; print(json.dumps(d["syms"]))'], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
KNOWN = {'zsad'} | set(SYMBOLS) | {k for m in SYMBOLS.values() for k in m} | {m.rsplit('.', 1)[0] for m in SYMBOLS}

@each_page
def test_names_of_the_package_exist(page):
    "`zsad.x.y` in prose is a module, a symbol, or a symbol of the package's own root."
    import zsad
    named = {n for c in cells(page, 'markdown') for n in re.findall(r'`(zsad(?:\.[A-Za-z_]\w*)+)(?:\(\))?`', text(c))}
    assert not {n for n in named if n not in KNOWN and not (n.count('.') == 1 and hasattr(zsad, n[5:]))}

PICTURE = ('image/png', 'image/jpeg', 'image/svg+xml')
def pictures(page): return [(c, o['data']) for c in cells(page, 'code') for o in c['outputs'] if set(PICTURE) & set(o.get('data', {}))]

@each_page
def test_every_figure_has_alt_text(page):
    alts = {c['id']: directive(c, 'fig-alt') for c, _ in pictures(page) if directive(c, 'hide') is None}
    assert not [i for i, a in alts.items() if len(a or '') < 20], 'cells whose figure has no #| fig-alt'
    assert len(set(alts.values())) == len(alts), 'the same alt text twice'
    for c in cells(page, 'markdown'):
        assert not re.search(r'!\[\s*\]\(', text(c)) and not re.search(r'<img(?![^>]*\balt="[^"]{10,}")[^>]*>', text(c)), f'{c["id"]}: a picture without alt text'

@each_page
def test_figures_are_small(page):
    sizes = {c['id']: len(base64.b64decode(''.join(d[k]))) for c, d in pictures(page) for k in PICTURE[:2] if k in d}
    assert not {i: s for i, s in sizes.items() if s > 60_000}

def test_the_notebooks_are_small():
    assert sum(p.stat().st_size for p in PAGES) <= 6_000_000

def test_the_sidebar_shows_every_page_once():
    contents = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf8'))['website']['sidebar']['contents']
    shown = [p for s in contents for p in (s['contents'] if isinstance(s, dict) else [s])]
    assert sorted(shown) == sorted(name(p) for p in PAGES)

def public(page):
    "Functions and classes that a page exports, without those that begin with _."
    for c in cells(page, 'code'):
        if directive(c, 'exports?') is not None: yield from (n for n in re.findall(r'^(?:async )?(?:def|class) ([A-Za-z]\w*)', text(c), re.M))

@each_page
def test_every_public_symbol_is_documented_and_used(page, processed):
    proc, _ = processed
    shown = '\n'.join(''.join(o.get('data', {}).get('text/markdown', '')) for c in cells(proc/name(page), 'code') for o in c['outputs'])
    patched = {n for c in cells(page, 'code') for n in re.findall(r'^@patch.*\n(?:@.*\n)*def (\w+)', text(c), re.M)}
    used = '\n'.join(text(c) for c in cells(page, 'code') if directive(c, 'exporti?s?') is None)
    for n in set(public(page)) - patched:
        assert re.search(rf'^#+ {n}\b', shown, re.M), f'{n} has no reference entry'
        assert re.search(rf'\b{n}\b', used), f'{n} is used by no example on its page'

STAGES = [p for p in PAGES if p.parent.name == 'pipeline']
@pytest.mark.parametrize('page', STAGES, ids=name)
def test_a_stage_page_is_whole(page):
    md = [text(c) for c in cells(page, 'markdown')]
    assert sum(f'pipeline.svg#{web(page)}"' in s for s in md) == 1, 'the strip of the six boxes, with this one lit'
    assert len(pictures(page)) >= 3
    h2 = [h for s in md for h in re.findall(r'^## (.+)$', s, re.M)]
    assert h2[-2:] == ['What can go wrong', 'Export -']

def test_the_strip_links_to_every_stage():
    svg = (NBS/'images'/'pipeline.svg').read_text()
    boxes = dict(re.findall(r'<a id="(\w+)" href="\.\./pipeline/(\w+)\.html"', svg))
    assert set(boxes) == {web(p) for p in STAGES} - {'vvv'} and all(k == v for k, v in boxes.items())

@each_page
def test_no_word_is_linked_by_accident(page):
    "nbdev links every `word` that is also the name of a symbol: right only where the page's code defines or imports that symbol."
    from nbdev.doclinks import NbdevLookup
    lookup, code = NbdevLookup('zsad'), '\n'.join(text(c) for c in cells(page, 'code'))
    words = {w for c in cells(page, 'markdown') for w in re.findall(r'(?<![\[`])`([a-z]+)`(?![\]`])', re.sub(r'^```.*?^```', '', text(c), flags=re.M | re.S))}
    assert not {w: lookup.doc(w) for w in words if lookup.doc(w) and not re.search(rf'^\s*(?:def|class) {w}\b|^(?:from|import)[^#\n]*\b{w}\b', code, re.M)}
