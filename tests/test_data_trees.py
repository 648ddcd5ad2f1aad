"The readers on a tree of VisA's true size and names: every file that the real split file names, empty."
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from zsad.data.base import NAMES, noun
from zsad.data.visa import IncompleteTree, VisaDataset, read_split, visa_categories

SPLIT = next((f for d in Path(__file__).resolve().parents if (f := d/'shared'/'reference'/'visa'/'1cls.csv').exists()), None)
needs_split = pytest.mark.skipif(SPLIT is None, reason="needs VisA's split file in ../shared")
NORMAL = dict(candle=100, capsules=60, cashew=50, chewinggum=50, fryum=50, macaroni1=100, macaroni2=100, pcb1=100, pcb2=100, pcb3=101, pcb4=101, pipe_fryum=50)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp('full')/'visa'
    (root/'split_csv').mkdir(parents=True)
    (root/'split_csv'/'1cls.csv').write_bytes(SPLIT.read_bytes())
    for line in SPLIT.read_text(encoding='utf8').splitlines()[1:]:
        for p in line.split(',')[3:]:
            if p:
                (root/p).parent.mkdir(parents=True, exist_ok=True)
                (root/p).touch()
    return root


@needs_split
def test_published_counts(tree):
    start = time.process_time()
    test, train = VisaDataset(tree), VisaDataset(tree, split='train')
    assert time.process_time() - start < 10
    assert (len(test), len(train)) == (2162, 8659) and Counter(test.labels()) == {0: 962, 1: 1200}
    assert test.categories == visa_categories(tree) == list(NORMAL), 'in the order of the file'
    assert {c: Counter(d.labels()) for c, d in test.per_category().items()} == {c: {0: n, 1: 100} for c, n in NORMAL.items()}
    assert set(train.labels()) == {0} and not {s.key for s in train} & {s.key for s in test}
    assert all((s.mask_path is not None) == (s.label == 1) for s in test) and not test.notes


@needs_split
def test_nouns(tree):
    raw, said = ({s.obj for s in VisaDataset(tree, names=n)} for n in ('raw', 'community'))
    assert raw == set(NORMAL)
    assert said == {NAMES.get(o, o) for o in NORMAL} and not any(ch.isdigit() or ch == '_' for o in said for ch in o)
    assert {noun(o, 'words') for o in NORMAL} == {o.replace('_', ' ') for o in NORMAL}


@needs_split
def test_a_part_of_it(tree, tmp_path):
    "Two of twelve objects were fetched: they can be read, and the error says so."
    part = tmp_path/'part'
    (part/'split_csv').mkdir(parents=True)
    (part/'split_csv'/'1cls.csv').write_bytes(SPLIT.read_bytes())
    for r in read_split(SPLIT):
        if r.object in ('candle', 'pcb4') and r.split == 'test':
            for p in filter(None, (r.image, r.mask)):
                (part/p).parent.mkdir(parents=True, exist_ok=True)
                (part/p).touch()
    with pytest.raises(IncompleteTree) as e: VisaDataset(part)
    assert e.value.whole == ['candle', 'pcb4'] and len(e.value.missing) == 2162 + 1200 - (200 + 100) - (201 + 100)
    assert f'{len(e.value.missing)} of 3362 files' in str(e.value) and 'zsad fetch visa' in str(e.value) and len(str(e.value)) < 600
    assert len(VisaDataset(part, e.value.whole)) == 401 and len(VisaDataset(part, 'pcb4')) == 201
    with pytest.raises(IncompleteTree): VisaDataset(part, ['candle', 'cashew'])
    with pytest.raises(IncompleteTree, match='no object is whole'): VisaDataset(part, 'candle', split='train')


@pytest.mark.skipif(os.name == 'nt', reason='links want special rights')
def test_links_that_lead_out(tmp_path):
    "A link to a file, to a folder, and of a folder above; inside the root they are fine."
    root, out = tmp_path/'root', tmp_path/'out'
    for d in (root/'split_csv', root/'nut', out): d.mkdir(parents=True)
    (out/'private.png').touch()
    def split(p): (root/'split_csv'/'1cls.csv').write_text(f'object,split,label,image,mask\nnut,test,anomaly,nut/a.png,{p}\n', encoding='utf8')
    (root/'nut'/'a.png').touch(); (root/'real.png').touch()
    (root/'nut'/'file.png').symlink_to(out/'private.png')
    (root/'nut'/'folder').symlink_to(out)
    (root/'nut'/'inside.png').symlink_to(root/'real.png')
    for p in ('nut/file.png', 'nut/folder/private.png'):
        split(p)
        with pytest.raises(ValueError, match='is a link that leads out of'): VisaDataset(root)
    split('nut/inside.png')
    assert VisaDataset(root)[0].mask_path == root/'nut'/'inside.png'
    (tmp_path/'alias').symlink_to(root)
    assert len(VisaDataset(tmp_path/'alias')) == 1
