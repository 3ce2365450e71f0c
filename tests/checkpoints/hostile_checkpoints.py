"""Checkpoints made to run code, to crash the interpreter or to eat the memory, and their reader.

As a program it reads each file named on its command line in a process of its own, under an
audit hook, and prints a JSON line for each: ``python hostile_checkpoints.py FILE…``. With
``--fuzz COUNT SEED FILE…`` it reads mutations of the files instead, in batches of processes.
"""

import io
import json
import os
import pickletools
import random
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

# --- writing -----------------------------------------------------------------------------------


def global_(module, name):
    return f'c{module}\n{name}\n'.encode()


def string(text):
    data = text.encode('utf-8', 'surrogatepass')
    return b'X' + struct.pack('<I', len(data)) + data


def integer(value):
    if 0 <= value < 2**31:
        return b'J' + struct.pack('<i', value)
    data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    if len(data) > 255:
        return b'\x8b' + struct.pack('<i', len(data)) + data
    return b'\x8a' + bytes([len(data)]) + data


def raw(data):
    """Bytes, as protocol 2 spells them."""
    return (
        global_('_codecs', 'encode') + string(data.decode('latin-1')) + string('latin1') + b'\x86R'
    )


def tuple_(*parts):
    return b'(' + b''.join(parts) + b't'


def list_(*parts):
    return b'](' + b''.join(parts) + b'e'


def dict_(**items):
    return b'}(' + b''.join(string(key) + value for key, value in items.items()) + b'u'


def call(function, *arguments):
    return function + tuple_(*arguments) + b'R'


def storage(count, kind='FloatStorage', key='0'):
    name = (string('storage'), global_('torch', kind), string(key), string('cpu'), integer(count))
    return tuple_(*name) + b'Q'


def tensor(count=4, size=(4,), stride=(1,), offset=0, kind='FloatStorage', key='0'):
    return call(
        global_('torch._utils', '_rebuild_tensor_v2'),
        storage(count, kind, key),
        integer(offset),
        tuple_(*map(integer, size)),
        tuple_(*map(integer, stride)),
        b'\x89',
        call(global_('collections', 'OrderedDict')),
    )


def file_of(payload, records=None, compression=zipfile.ZIP_STORED):
    """A file of torch with ``payload`` as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02' + payload + b'.')
        archive.writestr('archive/version', '3\n')
        for key, content in (records or {'0': bytes(16)}).items():
            archive.writestr(f'archive/data/{key}', content)
    return buffer.getvalue()


# --- NumPy's doors -----------------------------------------------------------------------------

NDARRAY, DTYPE = global_('numpy', 'ndarray'), global_('numpy', 'dtype')
COUNTER = global_('collections', 'Counter')
POINTER = struct.pack('<Q', 0x4141414141414141)
MULTIARRAYS = ('numpy.core.multiarray', 'numpy._core.multiarray')
OBJECT_KINDS = ('O', 'O8', '|O', 'object', 'f8,O', '(2,)O', 'V8', 'U2', 'M8')


def dtype(kind):
    return call(DTYPE, string(kind), b'\x89', b'\x88')


def dtype_state(kind, flags):
    """A dtype whose state is set: its flags are the last number."""
    state = (integer(3), string('|'), b'N', b'N', b'N', integer(8), integer(8), integer(flags))
    return dtype(kind) + tuple_(*state) + b'b'


def array_of(kind, shape=1, content=POINTER):
    """``np.ndarray(shape, kind, buffer)``: its elements are the buffer's bytes."""
    return call(NDARRAY, tuple_(integer(shape)), kind, raw(content))


def reconstructed(module, kind, shape=(1,), content=POINTER):
    made = call(global_(module, '_reconstruct'), NDARRAY, tuple_(integer(0)), raw(b'b'))
    state = tuple_(
        integer(1), tuple_(*map(integer, shape)), kind, b'\x89',
        raw(content) if isinstance(content, bytes) else content[0],
    )  # fmt: skip
    return made + state + b'b'


def history_of(array):
    made = global_('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81'
    return made + dict_(_log_history=array, _count_history=array, max_length=integer(10)) + b'b'


def numpy_payloads():
    for spelling in OBJECT_KINDS:
        kinds = {'plain': dtype(spelling), 'state': dtype_state(spelling, 0)}
        for name, kind in kinds.items():
            yield f'ndarray {spelling} {name}', call(COUNTER, array_of(kind))
            for module in MULTIARRAYS:
                scalar = call(global_(module, 'scalar'), kind, raw(POINTER))
                yield f'{module}.scalar {spelling} {name}', scalar
                yield f'{module}.scalar {spelling} {name} called', call(scalar, string('x'))
                yield f'{module}._reconstruct {spelling} {name}', reconstructed(module, kind)
    for text in ('O', 'f8'):
        yield (
            f'ndarray by text {text}',
            call(NDARRAY, tuple_(integer(1)), string(text), raw(POINTER)),
        )
    multiarray = MULTIARRAYS[1]
    double = dtype('f8')
    wide = raw(bytes(80))
    yield 'items set in an array', array_of(double) + integer(0) + integer(1) + b's'
    yield (
        'items set in a filled array',
        (reconstructed(multiarray, double) + integer(0) + integer(1) + b's'),
    )
    yield (
        'an array filled twice',
        (
            reconstructed(multiarray, double)
            + tuple_(integer(1), tuple_(integer(9)), dtype('O'), b'\x89', list_(b'N'))
            + b'b'
        ),
    )
    yield 'a list for bytes', reconstructed(multiarray, double, content=(list_(integer(1)),))
    yield 'too few bytes', reconstructed(multiarray, double, (1000,))
    yield 'negative shape', reconstructed(multiarray, double, (2**63,))
    yield 'a dtype that grows', (
        double
        + tuple_(
            integer(3), string('|'), b'N', tuple_(string('a')),
            dict_(a=tuple_(dtype('O'), integer(0))), integer(8), integer(8), integer(63),
        )
        + b'b'
        + wide
        + b'\x86'
    )  # fmt: skip
    yield (
        'an array of another class',
        call(global_(multiarray, '_reconstruct'), DTYPE, tuple_(integer(0)), raw(b'b')),
    )
    yield (
        'byte order',
        reconstructed(multiarray, double + tuple_(integer(3), string('>'), b'N', b'N') + b'b'),
    )


# --- other doors -------------------------------------------------------------------------------

GETATTR = global_('builtins', 'getattr')
HISTORY = global_('mmengine.logging.history_buffer', 'HistoryBuffer')


def deep(count):
    """A tuple in a tuple in a tuple …: to hash it takes the C stack."""
    return b')' + b'\x85' * count


def other_payloads():
    touch = string('touch executed')
    yield 'os.system', call(global_('posix', 'system'), touch)
    yield 'subprocess', call(global_('subprocess', 'getoutput'), touch)
    yield 'eval', call(global_('builtins', 'eval'), string('open("executed", "w")'))
    yield 'exec', call(global_('__builtin__', 'exec'), string('open("executed", "w")'))
    yield 'import', call(global_('importlib', 'import_module'), string('antigravity'))
    yield 'module as a name', global_('antigravity', 'fly')
    yield 'torch.load', call(global_('torch.serialization', 'load'), string('executed'))
    yield 'bytearray', call(global_('builtins', 'bytearray'), integer(2**40))
    yield 'getattr of getattr', call(GETATTR, GETATTR, string('__self__'))
    yield 'getattr of a history', call(call(GETATTR, HISTORY, string('mean')), integer(1))
    yield (
        'method of a history',
        call(global_(*('mmengine.logging.history_buffer', 'HistoryBuffer.mean'))),
    )
    yield 'setstate of a history', HISTORY + b')\x81' + dict_(__setstate__=GETATTR) + b'b'
    yield (
        'class of a history',
        HISTORY + b')\x81' + dict_(__class__=global_('posix', 'system')) + b'b',
    )
    yield 'history of objects', history_of(array_of(dtype('O')))
    yield 'history of text', history_of(string('x'))
    yield 'state of a tensor', tensor() + dict_(data=integer(1)) + b'b'
    yield 'state of a storage', storage(4) + dict_(content=integer(1)) + b'b'
    yield 'state of a function', global_('collections', 'OrderedDict') + dict_(x=integer(1)) + b'b'
    yield (
        'state of an OrderedDict',
        (call(global_('collections', 'OrderedDict')) + dict_(update=GETATTR) + b'b'),
    )
    yield (
        'class of an OrderedDict',
        (call(global_('collections', 'OrderedDict')) + dict_(__class__=integer(1)) + b'b'),
    )
    yield (
        'versions that are none',
        call(global_('collections', 'OrderedDict')) + dict_(_metadata=dict_(a=b'N')) + b'b',
    )
    yield 'new object', global_('collections', 'OrderedDict') + b')\x81'
    yield 'a stand-in among the values', dict_(x=global_('collections', 'OrderedDict'))
    yield 'a stand-in in a tuple', dict_(x=tuple_(tuple_(global_('torch', 'FloatStorage'))))
    yield 'deep key', b'}' + deep(300_000) + b'Ns'
    yield 'deep key of a set', call(global_('__builtin__', 'set'), list_(deep(300_000)))
    yield 'deep key of a counter', call(COUNTER, list_(deep(300_000)))
    yield 'list as a key', b'}]Ns'
    yield 'tensor as a key', b'}' + tensor() + b'Ns'
    yield (
        'numbers of one hash',
        b'}' + b''.join(integer(k * (2**61 - 1)) + b'Ns' for k in range(1, 9)),
    )
    yield 'an integer of many digits', integer(1 << 100_000)
    yield 'escapes in a key', b'}' + string('\x1b]0;owned\x07') + b'Ns'
    yield 'line feed in a key', b'}' + string('a\nerror: b') + b'Ns'
    yield 'lone surrogate in a key', b'}' + string('\udc80') + b'Ns'
    yield 'memo before it is there', b'h\x05'
    yield 'empty stack', b'R'
    yield 'below the mark', b']N(ae'
    yield 'extension registry', b'\x82\x01'
    yield 'stack global', string('posix') + string('system') + b'\x93'
    yield 'instance', b'(' + touch + b'iposix\nsystem\n'
    yield 'object', b'(' + global_('posix', 'system') + touch + b'o'
    yield 'keywords', global_('posix', 'system') + tuple_(touch) + dict_() + b'\x92'


def tensor_payloads():
    yield 'a tensor as a state', call(global_('collections', 'OrderedDict')) + tensor() + b'b'
    yield 'storage beyond its record', tensor(2**40, (2**40,))
    yield 'storage larger than the file', tensor(10**6, (10**6,))
    yield 'size beyond the storage', tensor(4, (5,))
    yield 'offset beyond the storage', tensor(4, (1,), offset=4)
    yield 'negative offset', tensor(4, (1,), offset=2**64 - 1)
    yield 'stride beyond the storage', tensor(4, (2,), (2**40,))
    yield 'stride of 0', tensor(4, (2**40,), (0,))
    yield 'a terabyte out of three numbers', tensor(4, (2**13,) * 3, (0,) * 3)
    yield 'overflow of the size', tensor(4, (2**32, 2**32, 0), (1, 1, 1))
    yield 'size and stride', tensor(4, (2, 2), (1,))
    yield 'complex view', tensor(4, (4,), kind='ComplexDoubleStorage')
    yield 'record that is not there', tensor(key='7')
    yield 'record of another folder', tensor(key='../../../etc/passwd')
    yield (
        'a key that is no text',
        tuple_(
            string('storage'), global_('torch', 'FloatStorage'), list_(), string('cpu'), integer(4)
        )
        + b'Q',
    )
    yield (
        'a type that is no storage',
        tuple_(string('storage'), integer(1), string('0'), string('cpu'), integer(4)) + b'Q',
    )
    yield 'two sizes of one storage', tuple_(tensor(4), tensor(2, (2,)))


def again(function, arguments, count=3000):
    """Call a function with the same large arguments again and again: each call is five bytes."""
    calls = b'](' + b'h\x00h\x01R' * count + b'e'
    return function + b'q\x00' + arguments + b'q\x01' + calls + b'\x87'


def growing_payloads():
    ones = list_(*[b'K\x01'] * 300_000)
    counts = b'}(' + b''.join(integer(k) + b'K\x01' for k in range(50_000)) + b'u'
    text = tuple_(string('a' * 10**6), string('latin1'))
    yield 'text encoded again', again(global_('_codecs', 'encode'), text)
    yield 'sets of a list', again(global_('__builtin__', 'set'), tuple_(ones))
    yield 'counters of a dict', again(COUNTER, tuple_(counts))
    made = call(global_(MULTIARRAYS[1], '_reconstruct'), NDARRAY, tuple_(integer(0)), raw(b'b'))
    shape = tuple_(integer(125_000))
    state = tuple_(integer(1), shape, dtype('f8'), b'\x89', raw(bytes(10**6)))
    arrays = b'](' + (made + b'h\x03b') * 3000 + b'e'
    yield 'arrays of the same bytes', state + b'q\x03' + arrays + b'\x86'
    versions = b'}' + b''.join(string(f'k{k}') + b'}s' for k in range(20_000))
    state = dict_(_metadata=versions)
    dicts = b'](' + b'h\x00)Rh\x01b' * 3000 + b'e'
    ordered = global_('collections', 'OrderedDict')
    yield 'versions of many modules', ordered + b'q\x00' + state + b'q\x01' + dicts + b'\x87'
    yield 'a long name', b'}' + string('.' * 300_000) + b'Ns'
    yield 'dicts alone', b'](' + b'}' * 300_000 + b'e'
    yield 'tuples alone', b'](' + b'N\x85' * 300_000 + b'e'
    name = (string('storage'), global_('torch', 'FloatStorage'), string('0'), string('cpu'))
    yield 'storages of one name', tuple_(*name, integer(4)) + b'q\x00' + b'(' + b'h\x00Q' * 300_000
    yield 'histories of one name', HISTORY + b'q\x00' + b'(' + b'h\x00)\x81' * 300_000
    order = tuple_(b'K\x03', string('<'), b'N' * 20_000)
    yield 'the state of a dtype again', dtype('f8') + order + b'q\x01b' + b'h\x01b' * 5000
    # In a table of 2**k places these meet: the low bits are the same, and so are the next ones.
    sparse = b''.join(integer(k << 20) + b'N' for k in range(1, 2000))
    name = b'K\x01q\x00' + b'h\x00h\x00\x86q\x00' * 40
    yield 'a dtype of tuples', name + DTYPE + b'h\x00\x85R'
    one = tensor(1, (), (), kind='LongStorage')
    yield (
        'a tensor as the number of a device',
        call(global_('torch', 'device'), string('cuda'), one),
    )
    name = (string('storage'), global_('torch', 'FloatStorage'), string('a' * 10**5))
    yield 'a long name of a storage', tuple_(*name, string('cpu'), integer(4)) + b'Q'
    yield 'marks alone', b'(' * 300_000
    yield 'numbers that meet as keys', b'}(' + sparse + b'u'
    fractions = b''.join(b'G' + struct.pack('>d', k + 0.5) + b'N' for k in range(100))
    yield 'fractions as keys', b'}(' + fractions + b'u'
    numbers = list_(*(integer(k << 20) for k in range(1, 2000)))
    yield 'numbers that meet in a set', call(global_('__builtin__', 'set'), numbers)
    tower = b']q\x00' + b''.join(b'](' + b'h\x00' * 10 + b'eq\x00' for _ in range(9))
    yield 'lists in lists', tower
    deeper = b'K\x01' + b'\x85' * 100
    yield 'deep lists', deeper
    many = b'](' + (tensor(2**20, (2**20,)) + b'q\x00') + b'h\x00' * 300 + b'e'
    yield 'a tensor of many names', many


def heavy_payloads():
    """What takes the most memory for its bytes; the text is there to be paid with."""
    text = string('a' * 10**6)
    yield 'nothing', list_(b'N' * 10**6)
    yield 'tuples', list_(b'N\x85' * 300_000)
    yield 'numbers as keys', b'}(' + b''.join(integer(k) + b'N' for k in range(150_000)) + b'u'
    view = tuple_(storage(4), integer(0), b')', b')', b'\x89', b'N')
    rebuild = global_('torch._utils', '_rebuild_tensor_v2')
    swallow = global_('torch._utils', '_rebuild_parameter')
    kept = swallow + tuple_(tensor(), rebuild + b'q\x00', view + b'q\x01') + b'R'
    yield 'tensors', list_(kept, text, b'h\x00h\x01R' * 70_000)
    ordered = global_('collections', 'OrderedDict') + b'q\x00'
    yield (
        'ordered dictionaries',
        swallow + tuple_(tensor(), ordered) + b'R' + list_(b'h\x00)R' * 200_000) + b'\x86',
    )
    versions = b'}' + b''.join(
        string(f'k{k}') + b'}' + string('version') + b'K\x01ss' for k in range(1000)
    )
    state = swallow + tuple_(tensor(), ordered, dict_(_metadata=versions) + b'q\x01') + b'R'
    yield 'versions', list_(state, text, b'h\x00)Rh\x01b' * 170)


def nested(payload):
    """A payload in the places of a checkpoint where training would meet it."""
    empty = call(global_('collections', 'OrderedDict'))
    hub = dict_(
        log_scalars=empty + string('loss') + payload + b's', runtime_info=empty, resumed_keys=empty
    )
    yield 'history', dict_(state_dict=dict_(a=tensor()), message_hub=hub)
    yield 'optimizer', dict_(state_dict=dict_(a=tensor()), optimizer=dict_(state=payload))
    yield 'ema', dict_(state_dict=dict_(a=tensor()), ema_state_dict=dict_(a=payload))


def hostile_files():
    """Names and contents of files that must be refused."""
    for payloads in (numpy_payloads, other_payloads, tensor_payloads, growing_payloads):
        for name, payload in payloads():
            records = {'0': bytes(2**22)} if name == 'a tensor of many names' else None
            yield name, file_of(payload, records)
    for name, payload in (
        ('ndarray', call(COUNTER, array_of(dtype('O')))),
        ('scalar', call(global_(MULTIARRAYS[1], 'scalar'), dtype_state('O', 0), raw(POINTER))),
        ('system', call(global_('posix', 'system'), string('touch executed'))),
    ):
        for place, content in nested(payload):
            yield f'{name} in {place}', file_of(content)
    zeros = {'0': bytes(2**22)}
    yield 'compressed', file_of(tensor(2**20, (2**20,)), zeros, zipfile.ZIP_DEFLATED)
    old = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02' + dict_(
        little_endian=b'\x88'
    )
    yield 'tar', bytes(257) + b'ustar\x0000' + bytes(1000)
    yield 'old format', old + b'.\x80\x02' + call(global_('posix', 'system'), string('x')) + b'.'
    yield 'old format, storage', old + b'.\x80\x02' + tensor(2**40, (2**40,)) + b'.\x80\x02].'
    yield (
        'old format, keys',
        old + b'.\x80\x02' + tensor() + b'.\x80\x02' + list_(integer(1)) + b'.',
    )
    tower = b']q\x00' + b''.join(b'](' + b'h\x00' * 10 + b'eq\x00' for _ in range(40))
    yield 'old format, lists as keys', old + b'.\x80\x02' + tensor() + b'.\x80\x02' + tower + b'.'


# --- reading -----------------------------------------------------------------------------------

FOREIGN = {
    'exec', 'compile', 'import', 'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'os.remove',
    'os.rename', 'os.mkdir', 'os.listdir', 'subprocess.Popen', 'socket.connect', 'shutil.rmtree',
    'ctypes.dlopen', 'pickle.find_class', 'code.__new__', 'function.__new__',
}  # fmt: skip
READ, REFUSED, RAISED, CALLED = 0, 3, 4, 5


def watch():
    """End this process as soon as something happens that reading data does not need."""

    def hook(event, arguments):
        writes = (
            event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+')
        )
        if event in FOREIGN or writes:
            os.write(2, f'{event} {arguments}\n'.encode())
            os._exit(CALLED)

    sys.addaudithook(hook)


def read(path):
    """Everything that this package does with a file of weights before it is in a model."""
    from mmengine.runner import CheckpointLoader

    from mmpoolformer.checkpoints import CheckpointError, inspect, read_checkpoint

    try:
        read_checkpoint(path)
        CheckpointLoader.load_checkpoint(str(path))
    except CheckpointError as error:
        return REFUSED, str(error)
    try:
        inspect(path)
    except CheckpointError as error:
        return READ, str(error)
    return READ, 'whole'


def in_a_process(job):
    """Run a job in a child; return its exit code, negative for a signal, and what it wrote."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 2)
        try:
            watch()
            os._exit(job())
        except BaseException as error:
            os.write(2, f'{type(error).__name__}: {error}'.encode(errors='replace'))
            os._exit(RAISED)
    os.close(writer)
    with os.fdopen(reader, 'rb') as pipe:
        words = pipe.read().decode(errors='replace')
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


def read_and_report(path):
    code, message = read(path)
    os.write(2, message.encode(errors='replace'))
    return code


def read_and_weigh(path):
    """Tell by how much reading raises the peak of this process's memory, in bytes."""
    import resource

    from mmpoolformer.checkpoints import CheckpointError, read_checkpoint

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before, end = peak(), 'read'
    try:
        content = read_checkpoint(path)  # kept, so that it is there when it is weighed
    except CheckpointError as error:
        content, end = None, str(error)
    os.write(2, json.dumps(dict(bytes=peak() - before, end=end, kept=bool(content))).encode())
    return READ


def warm_up(folder):
    """Import all that reading imports, so that an import under the hook is a file's doing."""
    import resource

    import torch

    from mmpoolformer.checkpoints import register_loaders

    register_loaders(replace=True)
    for contents in ({'a': torch.ones(2)}, [1]):
        torch.save(contents, folder / 'good.pth')
        read(folder / 'good.pth')
    for content in (
        b'bad',
        file_of(dict_(a=tensor(), b=reconstructed(MULTIARRAYS[1], dtype('f8')))),
        file_of(global_('posix', 'system')),
    ):
        (folder / 'other.pth').write_bytes(content)
        read(folder / 'other.pth')
    torch.set_num_threads(1)
    limit = 12 * 2**30  # bytes of address space, so that a large allocation is an error
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# --- mutating ----------------------------------------------------------------------------------

EXTREMES = (0, 1, -1, 255, 2**31 - 1, 2**40, 2**63 - 1, 2**64)


def fragments():
    """Pieces of hostile pickles, each of which pushes one value."""
    return [
        dtype('O'), dtype_state('O', 0), array_of(dtype('O')), GETATTR, HISTORY, NDARRAY, COUNTER,
        global_('posix', 'system'), string('touch executed'), deep(100), raw(POINTER),
        global_(MULTIARRAYS[1], 'scalar'), global_(MULTIARRAYS[0], '_reconstruct'), b'N', b')',
        b']', b'}', tensor(), *map(integer, EXTREMES[:2]), integer(2**64), storage(2**40),
    ]  # fmt: skip


def instructions_of(pickle):
    """The pickle cut into its instructions."""
    starts = [position for _, _, position in pickletools.genops(pickle)]
    return [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)])]


def mutate(instructions, rng, hostile):
    """Change one to four instructions of a pickle, in its structure or in its bytes."""
    mutated = list(instructions)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(1, len(mutated))
        kind = rng.randrange(7)
        if kind == 0:
            del mutated[place]
        elif kind == 1:
            mutated.insert(place, rng.choice(mutated))
        elif kind == 2:
            mutated.insert(place, rng.choice(hostile))
        elif kind == 3:
            mutated[place] = rng.choice(hostile)
        elif kind == 4:
            other = rng.randrange(1, len(mutated))
            mutated[place], mutated[other] = mutated[other], mutated[place]
        elif kind == 5 and mutated[place]:
            changed = bytearray(mutated[place])
            changed[rng.randrange(len(changed))] = rng.randrange(256)
            mutated[place] = bytes(changed)
        else:
            mutated[place] = integer(abs(rng.choice(EXTREMES)))
        if len(mutated) < 2:
            return list(instructions)
    return mutated


def split_archive(path):
    """The instructions of a file's pickle, and its other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in records if name.endswith('/data.pkl'))
    return pickle, instructions_of(records.pop(pickle)), records


def fuzz(seeds, count, seed, folder):
    """Read ``count`` mutations; return how many had which end. A batch is a process."""
    sources = [split_archive(path) for path in seeds]
    hostile, batch = fragments(), 250
    ends = dict(read=0, refused=0)
    for start in range(0, count, batch):

        def job(start=start):
            rng = random.Random(seed * 1_000_003 + start)
            codes = []
            descriptor = os.open(folder / 'mutated.pth', os.O_RDWR | os.O_CREAT)
            for _ in range(min(batch, count - start)):
                name, instructions, records = rng.choice(sources)
                with io.BytesIO() as buffer:
                    with zipfile.ZipFile(buffer, 'w') as archive:
                        archive.writestr(name, b''.join(mutate(instructions, rng, hostile)))
                        for record, content in records.items():
                            archive.writestr(record, content)
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, buffer.getvalue(), 0)
                codes.append(read(folder / 'mutated.pth')[0])
            counts = {'read': codes.count(READ), 'refused': codes.count(REFUSED)}
            os.write(2, json.dumps(counts).encode())
            return READ

        (folder / 'mutated.pth').touch()
        code, words = in_a_process(job)
        if code != READ:
            return dict(ends, failed=dict(code=code, start=start, words=words[:2000]))
        for end, number in json.loads(words.splitlines()[-1]).items():
            ends[end] += number
    return ends


def main():
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder))
        if sys.argv[1] == '--fuzz':
            count, seed, *paths = sys.argv[2:]
            print(json.dumps(fuzz(paths, int(count), int(seed), Path(folder))))
            return
        if sys.argv[1] == '--memory':
            for path in sys.argv[2:]:
                _, words = in_a_process(lambda path=path: read_and_weigh(Path(path)))
                print(words, flush=True)
            return
        for path in sys.argv[1:]:
            code, words = in_a_process(lambda path=path: read_and_report(Path(path)))
            print(json.dumps(dict(path=path, code=code, words=words)), flush=True)


if __name__ == '__main__':
    main()
