"""Kinds of state that a cell can make, each with what a checkpoint and a fresh kernel must make of it.

Run by ``test_state_matrix.py``, which also explains the fields' use; ``docs/statetable.py`` makes docs/state.md of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StateKind:
    """One kind of state.

    Attributes:
        name: what it is, as the page says it.
        setup: a cell that makes it.
        check: a cell whose result is True where the state is what it was.
        lost: name and kind of each variable that must be reported, as it is lost or holds what is lost.
        uses: cells each of which must raise NotRestoredError after the restore, and must not before.
        beside: name and kind of what must be reported once, and has no variable.
        note: what the page says of it besides.
        alone: whether it would disturb the other kinds: it is tried in a second session.
    """

    name: str
    setup: str
    check: str = "True"
    lost: dict[str, str] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)
    note: str = ""
    alone: bool = False

    @property
    def reported(self) -> bool:
        return bool(self.lost or self.beside)


VALUES = (
    StateKind(
        "numbers: huge, nan, inf, -0.0, complex",
        "import math\nnumbers = [3**5000, float('nan'), float('-inf'), -0.0, 1 - 2j, True]",
        "numbers[0] == 3**5000 and math.isnan(numbers[1]) and numbers[2] == -math.inf and math.copysign(1, numbers[3]) == -1 and numbers[4] == 1 - 2j and numbers[5] is True",
    ),
    StateKind(
        "text and bytes, surrogates too",
        "texts = ['ä\\U0001f512\\ud800', b'\\0\\xff', '', 'x' * 100_000]",
        "texts == ['ä\\U0001f512\\ud800', b'\\0\\xff', '', 'x' * 100_000]",
    ),
    StateKind(
        "singletons",
        "singletons = [None, NotImplemented, Ellipsis, type(None), type(...), int, len]",
        "all(a is b for a, b in zip(singletons, [None, NotImplemented, Ellipsis, type(None), type(...), int, len], strict=True))",
    ),
    StateKind(
        "the IPython shell, its methods and parts, and globals()",
        "shell_ = get_ipython()\nget_shell = get_ipython\nrun_line = shell_.run_line_magic\nparts_ = [shell_.history_manager, shell_.display_formatter, shell_.kernel]\nleave = [exit, quit]\nvariables_ = globals()",
        "shell_ is get_ipython() and get_shell() is shell_ and run_line.__self__ is shell_ and parts_ == [shell_.history_manager, shell_.display_formatter, shell_.kernel] and len(leave) == 2 and variables_ is globals()",
    ),
    StateKind(
        "sentinels: object() compared by identity",
        "MISSING = object()\ndef lookup(key, default=MISSING): return default is MISSING\nmarked = {'a': MISSING}",
        "lookup('a') and not lookup('a', None) and marked['a'] is MISSING and type(MISSING) is object",
    ),
    StateKind(
        "sentinels of libraries",
        "import dataclasses, functools, inspect, pandas as pd\nfound_sentinels = [dataclasses.MISSING, dataclasses.KW_ONLY, inspect.Parameter.empty, functools._NOT_FOUND, pd.NA, pd.NaT]",
        "all(a is b for a, b in zip(found_sentinels, [dataclasses.MISSING, dataclasses.KW_ONLY, inspect.Parameter.empty, functools._NOT_FOUND, pd.NA, pd.NaT], strict=True))",
    ),
    StateKind(
        "Decimal, Fraction, and the decimal context",
        "import decimal, fractions\ndecimal.getcontext().prec = 7\nratio, third = fractions.Fraction(1, 3), decimal.Decimal(1) / 3",
        "ratio == fractions.Fraction(1, 3) and str(third) == '0.3333333' and str(decimal.Decimal(2) / 3) == '0.6666667'",
    ),
    StateKind(
        "dates, times and zones",
        "import datetime, zoneinfo\nberlin = zoneinfo.ZoneInfo('Europe/Berlin')\nmoments = [datetime.datetime(2024, 10, 27, 2, 30, tzinfo=berlin, fold=1), datetime.timedelta(1, 2, 3), datetime.date(1, 1, 1), datetime.timezone(datetime.timedelta(hours=5), 'X')]",
        "moments[0].fold == 1 and moments[0].tzinfo is berlin and moments[0].utcoffset() == datetime.timedelta(hours=1) and moments[1].microseconds == 3 and moments[3].tzname(None) == 'X'",
    ),
    StateKind(
        "UUID, Path, range, slice, regular expression",
        "import pathlib, re, uuid\nplain = [uuid.UUID(int=5), pathlib.Path('/work/a'), range(1, 9, 3), slice(1, None, 2), re.compile(r'(?P<n>\\d+)', re.I)]",
        "plain == [uuid.UUID(int=5), pathlib.Path('/work/a'), range(1, 9, 3), slice(1, None, 2), re.compile(r'(?P<n>\\d+)', re.I)] and plain[4].match('12')['n'] == '12'",
    ),
    StateKind(
        "instances of a subclass of str, int, dict, list, tuple",
        "class Tag(str): pass\nclass Count(int): pass\nclass Bag(dict): pass\nclass Row(list): pass\nclass Pair(tuple): pass\n"
        "tag, count, bag, row, pair = Tag('t'), Count(3), Bag(a=1), Row([1]), Pair((1, 2))\ntag.note = bag.note = row.note = 'kept'",
        "(type(tag), type(count), type(bag), type(row), type(pair)) == (Tag, Count, Bag, Row, Pair) and (tag, count, bag, row, pair) == ('t', 3, {'a': 1}, [1], (1, 2)) and {tag.note, bag.note, row.note} == {'kept'}",
    ),
)

CONTAINERS = (
    StateKind(
        "one object under several names",
        "shared = [1]\nholders = {'a': shared, 'b': (shared, shared)}",
        "shared.append(2) or holders['a'] is shared and holders['b'][0] is holders['b'][1] is shared",
    ),
    StateKind(
        "containers that contain themselves",
        "loop = []; loop.append(loop)\nround_dict = {}; round_dict['me'] = round_dict\nclass Node: pass\nleft, right = Node(), Node()\nleft.other, right.other = right, left\nwrapped = ([],); wrapped[0].append(wrapped)",
        "loop[0] is loop and round_dict['me'] is round_dict and left.other.other is left and right.other is left and wrapped[0][0] is wrapped",
    ),
    StateKind(
        "dict with mixed keys, in its order; sets of frozensets",
        "mixed = {(1, 'a'): 1, None: 2, 3.5: 3, frozenset({1}): 4, Ellipsis: 5}\nsets = {frozenset({1, 2}), frozenset()}",
        "list(mixed) == [(1, 'a'), None, 3.5, frozenset({1}), Ellipsis] and mixed[frozenset({1})] == 4 and sets == {frozenset({2, 1}), frozenset()}",
    ),
    StateKind(
        "keys of a class with its own __hash__ and __eq__",
        "class Key:\n    def __init__(self, n): self.n = n\n    def __hash__(self): return hash(self.n)\n    def __eq__(self, other): return self.n == other.n\n"
        "keyed = {Key(1): 'one', Key(2): 'two'}\nkey_set = {Key(1)}",
        "keyed[Key(1)] == 'one' and keyed[Key(2)] == 'two' and Key(1) in key_set and Key(2) not in key_set",
    ),
    StateKind(
        "deque, OrderedDict, Counter, ChainMap",
        "import collections\nlast_three = collections.deque([1, 2, 3], maxlen=3)\nordered = collections.OrderedDict(b=1, a=2); ordered.move_to_end('b')\ncounter = collections.Counter('abba')\nbase_layer = {'x': 1}\nlayers = collections.ChainMap({}, base_layer)",
        "last_three.append(4) or list(last_three) == [2, 3, 4] and list(ordered) == ['a', 'b'] and counter.most_common(1)[0][1] == 2 and base_layer.update(x=5) is None and layers['x'] == 5",
    ),
    StateKind(
        "defaultdict with a lambda, nested",
        "import collections\ntree = collections.defaultdict(lambda: collections.defaultdict(list))\ntree['a']['b'].append(1)",
        "tree['new']['x'] == [] and tree['a']['b'] == [1]",
    ),
    StateKind(
        "bytearray, array.array",
        "import array\nbuffer = bytearray(b'abc')\nbuffer_again = buffer\ndoubles = array.array('d', [1.5, 2.5])",
        "buffer.append(100) or buffer_again == bytearray(b'abcd') and doubles.typecode == 'd' and list(doubles) == [1.5, 2.5]",
    ),
    StateKind(
        "memoryview of a whole object",
        "viewed = bytearray(12)\nwhole_view = memoryview(viewed)\ncast_view = memoryview(viewed).cast('I', (3,))\nread_only_view = memoryview(b'abc')",
        "import operator\noperator.setitem(whole_view, 0, 7) or type(whole_view) is memoryview and viewed[0] == 7 and cast_view[0] == 7 and cast_view.format == 'I' and read_only_view.readonly",
    ),
    StateKind(
        "memoryview of a part of an object",
        "part_view = memoryview(bytearray(10))[2:5]",
        lost={"part_view": "memoryview"},
        uses=("len(part_view)", "bytes(part_view)"),
    ),
    StateKind(
        "views of dicts, and read-only mappings",
        "import types\nsettings = {'a': 1}\nkeys_view, items_view = settings.keys(), settings.items()\nread_only = types.MappingProxyType(settings)",
        "settings.update(b=2) is None and 'b' in keys_view and ('b', 2) in items_view and read_only['b'] == 2 and type(read_only) is types.MappingProxyType",
    ),
    StateKind(
        "lists nested 2000 deep",
        "deep = []\nfor _level in range(2000): deep = [deep]",
        "depth = 0\nlevel = deep\nwhile level: level, depth = level[0], depth + 1\ndepth == 2000",
        alone=True,
    ),
    StateKind(
        "a linked list of 500 objects",
        "class Link:\n    def __init__(self, after): self.after = after\nchain = None\nfor _link in range(500): chain = Link(chain)",
        "links = 0\nhere = chain\nwhile here is not None: here, links = here.after, links + 1\nlinks == 500",
        alone=True,
    ),
    StateKind(
        "a linked list of 50,000 objects",
        "class Far:\n    def __init__(self, after): self.after = after\nendless = None\nfor _far in range(50_000): endless = Far(endless)",
        lost={"endless": "Far"},
        uses=("node = endless\nwhile node is not None: node = node.after",),
        note="kept as far as a capture can follow it, some thousand objects deep",
        alone=True,
    ),
)

FUNCTIONS = (
    StateKind(
        "functions with defaults, annotations, attributes and docstring",
        "def area(w: float, h: float = 2, *, unit: str = 'm') -> str:\n    'An area.'\n    return f'{w * h} {unit}'\narea.calls = [1]",
        "area(3) == '6 m' and area.__doc__ == 'An area.' and area.__annotations__['return'] is str and area.calls == [1] and area.__kwdefaults__ == {'unit': 'm'} and area.__module__ == '__main__'",
    ),
    StateKind(
        "functions that read and set the session's variables",
        "rate = 2\ndef scaled(x): return x * rate\ndef set_rate(to):\n    global rate\n    rate = to",
        "set_rate(10)\nfirst = scaled(1)\nrate = 3\n(first, scaled(1)) == (10, 3) and scaled.__globals__ is globals()",
    ),
    StateKind(
        "functions that refer to each other, and to themselves",
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)\ndef factorial(n): return 1 if n < 2 else n * factorial(n - 1)",
        "even(10) and odd(7) and factorial(5) == 120 and even.__globals__ is odd.__globals__",
    ),
    StateKind(
        "closures that share and change a variable",
        "def make_counter():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n        return n\n    def get(): return n\n    return up, get\nup, get = make_counter(); up(); up()",
        "get() == 2 and up() == 3 and get() == 3 and make_counter()[0]() == 1",
    ),
    StateKind(
        "a closure that refers to itself",
        "def make_fib():\n    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n    return fib\nfib = make_fib()",
        "fib(10) == 55 and fib.__closure__[0].cell_contents is fib",
    ),
    StateKind(
        "lambdas, in containers too",
        "square = lambda x: x * x\nby_name = {'twice': lambda x: 2 * x, 'square': square}\nadders = [lambda x, n=n: x + n for n in range(3)]",
        "square(3) == 9 and by_name['twice'](4) == 8 and by_name['square'] is square and [f(1) for f in adders] == [1, 2, 3]",
    ),
    StateKind(
        "decorated functions, with functools.wraps",
        "import functools\ndef traced(function):\n    @functools.wraps(function)\n    def wrapper(*args):\n        wrapper.calls += 1\n        return function(*args)\n    wrapper.calls = 0\n    return wrapper\n@traced\ndef inner(x):\n    'Doc.'\n    return x + 1\ninner(1)",
        "inner(1) == 2 and inner.calls == 2 and inner.__doc__ == 'Doc.' and inner.__wrapped__(1) == 2 and inner.__name__ == 'inner'",
    ),
    StateKind(
        "functools.partial, partialmethod, operator's getters",
        "import functools, operator\ndef power(base, exponent): return base ** exponent\ncube = functools.partial(power, exponent=3)\nclass Lamp:\n    def put(self, on): self.on = on; return self\n    light = functools.partialmethod(put, True)\nsecond = operator.itemgetter(1)",
        "cube(2) == 8 and cube.func is power and Lamp().light().on is True and second('ab') == 'b'",
    ),
    StateKind(
        "functools.lru_cache",
        "import functools\n@functools.lru_cache(maxsize=3)\ndef slow(x): return [x]\nslow(1)",
        "slow(2) is slow(2) and slow.cache_info().maxsize == 3 and slow.__wrapped__(1) == [1]",
        note="its cache begins empty",
    ),
    StateKind(
        "functools.cached_property",
        "import functools\nclass Report:\n    made = 0\n    @functools.cached_property\n    def rows(self): Report.made += 1; return [self.made]\nreport = Report(); report.rows",
        "report.rows == [1] and Report().rows == [2] and Report.made == 2",
    ),
    StateKind(
        "functools.singledispatch, as function and as method",
        "import functools\n@functools.singledispatch\ndef describe(x): return 'any'\n@describe.register\ndef _(x: int): return 'int'\n@describe.register(list)\ndef _(x): return 'list'\n"
        "class Writer:\n    @functools.singledispatchmethod\n    def write(self, x): return 'any'\n    @write.register\n    def _(self, x: str): return 'str'",
        "(describe(1), describe([]), describe('')) == ('int', 'list', 'any') and Writer().write('') == 'str' and Writer().write(1) == 'any' and describe.register(str, lambda x: 'str') and describe('') == 'str'",
    ),
    StateKind(
        "functools.total_ordering",
        "import functools\n@functools.total_ordering\nclass Version:\n    def __init__(self, n): self.n = n\n    def __eq__(self, other): return self.n == other.n\n    def __lt__(self, other): return self.n < other.n\nversions = [Version(2), Version(1)]",
        "max(versions).n == 2 and versions[0] >= versions[1] and Version(1) == versions[1]",
    ),
    StateKind(
        "generator functions, async functions, async generator functions",
        "def evens(n): yield from range(0, n, 2)\nasync def later(x): return x + 1\nasync def stream(n):\n    for i in range(n): yield i",
        "list(evens(5)) == [0, 2, 4] and await later(1) == 2 and [i async for i in stream(3)] == [0, 1, 2]",
    ),
    StateKind(
        "context managers: classes, and contextlib's",
        "import contextlib\nentered = []\nclass Opened:\n    def __enter__(self): entered.append('in'); return self\n    def __exit__(self, *_): entered.append('out')\nopened = Opened()\n@contextlib.contextmanager\ndef bracket(x):\n    entered.append(x)\n    yield x\n    entered.append(-x)",
        "with opened: pass\nwith bracket(5) as got: pass\nentered == ['in', 'out', 5, -5] and got == 5",
    ),
    StateKind(
        "bound methods and methods of built-in objects",
        "class Shelf:\n    def __init__(self): self.items = []\n    def put(self, x): self.items.append(x)\nshelf = Shelf()\nput = shelf.put\npush = shelf.items.append\njoined = ', '.join",
        "put(1) or push(2) or shelf.items == [1, 2] and put.__self__ is shelf and joined('ab') == 'a, b'",
    ),
    StateKind(
        "code objects",
        "code_object = compile('6 * 7', 'there', 'eval')",
        "eval(code_object) == 42 and code_object.co_filename == 'there'",
    ),
    StateKind(
        "functions made by exec in a namespace of their own",
        "own_space = {'k': 3}\nexec('def spaced(x): return x * k\\ndef spaced_too(): return spaced(k)', own_space)\nspaced, spaced_too = own_space['spaced'], own_space['spaced_too']",
        "spaced(2) == 6 and spaced_too() == 9 and own_space['spaced'] is spaced",
        note="among themselves they share their globals; these are no longer the dict that was given to exec",
    ),
    StateKind(
        "source of functions, for inspect and tracebacks",
        "import inspect\ndef with_source(): return 'source'",
        "\"return 'source'\" in inspect.getsource(with_source)",
    ),
)

CLASSES = (
    StateKind(
        "inheritance, super(), mixins",
        "class Animal:\n    def __init__(self, name): self.name = name\n    def speak(self): return self.name\nclass Loud:\n    def speak(self): return super().speak().upper()\nclass Dog(Loud, Animal): pass\nrex = Dog('rex')",
        "rex.speak() == 'REX' and isinstance(rex, Animal) and Dog.__mro__[1:3] == (Loud, Animal) and type(rex) is Dog",
    ),
    StateKind(
        "state of classes, changed after they were made",
        "class Config:\n    values = []\n    level = 1\nconfig_a, config_b = Config(), Config()\nConfig.level = 5\nConfig.values.append('x')\nConfig.late = lambda self: self.level",
        "config_a.values is config_b.values is Config.values and config_a.level == 5 and config_b.late() == 5 and Config.values == ['x']",
    ),
    StateKind(
        "property, classmethod, staticmethod; a property object by itself",
        "class Circle:\n    def __init__(self, r): self._r = r\n    @property\n    def r(self): return self._r\n    @r.setter\n    def r(self, to): self._r = abs(to)\n    @classmethod\n    def unit(cls): return cls(1)\n    @staticmethod\n    def pi(): return 3\ncircle = Circle(2)\nlonely = property(lambda self: 'alone')",
        "setattr(circle, 'r', -4) or circle.r == 4 and type(Circle.unit()) is Circle and Circle.pi() == 3 and type('Any', (), {'p': lonely})().p == 'alone'",
    ),
    StateKind(
        "descriptors with __set_name__",
        "class Positive:\n    named = 0\n    def __set_name__(self, owner, name): self.name = '_' + name; Positive.named += 1\n    def __get__(self, obj, kind=None): return self if obj is None else getattr(obj, self.name)\n    def __set__(self, obj, value):\n        if value < 0: raise ValueError\n        setattr(obj, self.name, value)\nclass Account:\n    balance = Positive()\naccount = Account(); account.balance = 5",
        "failed = False\ntry: account.balance = -1\nexcept ValueError: failed = True\nfailed and account.balance == 5 and Account.balance.name == '_balance' and Positive.named == 1",
    ),
    StateKind(
        "metaclasses that register, count and refuse",
        "class Meta(type):\n    registry = []\n    def __new__(meta, name, bases, space, tag='none'):\n        made = super().__new__(meta, name, bases, space)\n        made.tag = tag\n        meta.registry.append(made)\n        return made\n    def __init__(cls, name, bases, space, tag='none'): super().__init__(name, bases, space)\n    def __len__(cls): return len(cls.registry)\n    def __setattr__(cls, name, value):\n        if name == 'fixed': raise AttributeError(name)\n        super().__setattr__(name, value)\n"
        "class First(metaclass=Meta): fixed = 1\nclass Second(First, tag='second'): pass",
        "Meta.registry == [First, Second] and len(First) == 2 and (First.tag, Second.tag) == ('none', 'second') and type(Second) is Meta and First.fixed == 1 and type('Third', (First,), {}, tag='t').tag == 't' and len(Meta.registry) == 3",
    ),
    StateKind(
        "__init_subclass__ that registers and takes arguments",
        "class Plugin:\n    plugins = {}\n    def __init_subclass__(cls, *, key): Plugin.plugins[key] = cls; cls.key = key\nclass Csv(Plugin, key='csv'): pass\nclass Json(Plugin, key='json'): pass",
        "Plugin.plugins == {'csv': Csv, 'json': Json} and Csv.key == 'csv' and type('New', (Plugin,), {}, key='new') is Plugin.plugins['new']",
    ),
    StateKind(
        "singletons by metaclass and by __new__",
        "class Once(type):\n    made = {}\n    def __call__(cls, *args):\n        if cls not in cls.made: cls.made[cls] = super().__call__(*args)\n        return cls.made[cls]\nclass Store(metaclass=Once): pass\nstore = Store()\nclass Only:\n    it = None\n    def __new__(cls):\n        if cls.it is None: cls.it = super().__new__(cls)\n        return cls.it\nonly = Only()",
        "Store() is store and Only() is only and Once.made == {Store: store}",
    ),
    StateKind(
        "__slots__, inherited ones too",
        "class Point:\n    __slots__ = ('x', 'y', '__weakref__')\n    def __init__(self, x): self.x = x\nclass Point3(Point):\n    __slots__ = ('z',)\npoint = Point3(1); point.z = 3",
        "(point.x, point.z, hasattr(point, 'y'), hasattr(point, '__dict__')) == (1, 3, False, False) and isinstance(point, Point)",
    ),
    StateKind(
        "enum.Enum, IntEnum, Flag",
        "import enum\nclass Colour(enum.Enum):\n    RED = 1\n    BLUE = 'b'\n    ALIAS = 1\n    @property\n    def low(self): return self.name.lower()\nclass Size(enum.IntEnum): S, M = 1, 2\nclass Right(enum.Flag):\n    READ = enum.auto()\n    WRITE = enum.auto()\nred, both = Colour.RED, Right.READ | Right.WRITE",
        "red is Colour.RED is Colour.ALIAS is Colour(1) and red.low == 'red' and Size.M > 1 and both & Right.READ is Right.READ and both == Right(3) and list(Colour) == [red, Colour('b')]",
    ),
    StateKind(
        "namedtuple, typing.NamedTuple",
        "import collections, typing\nPlace = collections.namedtuple('Place', 'x y', defaults=[0])\nclass Named(typing.NamedTuple):\n    n: int\n    label: str = 'none'\n    def shout(self): return self.label.upper()\nplace, named = Place(1), Named(1)",
        "place == (1, 0) and place._replace(y=5) == Place(1, 5) and named.shout() == 'NONE' and type(named) is Named and Named._field_defaults == {'label': 'none'}",
    ),
    StateKind(
        "dataclasses: fields, defaults, inheritance",
        "import dataclasses\n@dataclasses.dataclass\nclass Item:\n    name: str\n    tags: list = dataclasses.field(default_factory=list, metadata={'unit': 'none'})\n    kind: dataclasses.InitVar[int] = 3\n@dataclasses.dataclass\nclass Priced(Item):\n    price: float = 1.5\nitem, priced = Item('a', ['x']), Priced('b')",
        "item == Item('a', ['x']) and [f.name for f in dataclasses.fields(Priced)] == ['name', 'tags', 'price'] and dataclasses.asdict(priced) == {'name': 'b', 'tags': [], 'price': 1.5} "
        "and dataclasses.fields(Item)[1].metadata['unit'] == 'none' and dataclasses.fields(Item)[0].default is dataclasses.MISSING and len(dataclasses.fields(dataclasses.make_dataclass('Sub', ['n'], bases=(Item,), kw_only=True))) == 3",
    ),
    StateKind(
        "dataclasses: frozen, with slots, ordered",
        "import dataclasses\n@dataclasses.dataclass(frozen=True, slots=True, order=True)\nclass Cell:\n    row: int\n    column: int = 0\ncell = Cell(1)",
        "frozen = False\ntry: cell.row = 5\nexcept dataclasses.FrozenInstanceError: frozen = True\nfrozen and cell == Cell(1) and cell < Cell(2) and hash(cell) == hash(Cell(1)) and not hasattr(cell, '__dict__') and dataclasses.replace(cell, column=2) == Cell(1, 2)",
    ),
    StateKind(
        "abstract classes, virtual subclasses",
        "import abc\nclass Shape(abc.ABC):\n    @abc.abstractmethod\n    def area(self): ...\nclass Square(Shape):\n    def area(self): return 4\nclass Other: pass\nShape.register(Other)\nsquare_shape = Square()",
        "refused = False\ntry: Shape()\nexcept TypeError: refused = True\nrefused and square_shape.area() == 4 and isinstance(square_shape, Shape) and issubclass(Other, Shape) and not issubclass(int, Shape)",
    ),
    StateKind(
        "generic classes, type variables, aliases",
        "import typing\nT = typing.TypeVar('T', bound=int)\nP = typing.ParamSpec('P')\nclass Box(typing.Generic[T]):\n    def __init__(self, x: T): self.x = x\nclass IntBox(Box[int]): pass\nbox, Alias = IntBox(1), dict[str, list[int]] | None",
        "isinstance(box, Box) and Box.__parameters__ == (T,) and typing.get_args(Box[int]) == (int,) and IntBox.__orig_bases__ == (Box[int],) and T.__bound__ is int and Alias == dict[str, list[int]] | None",
    ),
    StateKind(
        "TypedDict, Protocol, NewType",
        "import typing\nclass Movie(typing.TypedDict, total=False):\n    title: str\n    year: typing.Required[int]\nclass Sequel(Movie):\n    part: int\n@typing.runtime_checkable\nclass Closes(typing.Protocol):\n    def close(self): ...\nclass Door:\n    def close(self): pass\nUserId = typing.NewType('UserId', int)\nmovie = Movie(title='t', year=1)",
        "movie == {'title': 't', 'year': 1} and typing.is_typeddict(Movie) and Movie.__required_keys__ == {'year'} and Sequel.__optional_keys__ == {'title'} and isinstance(Door(), Closes) and not isinstance(1, Closes) and UserId(5) == 5 and UserId.__supertype__ is int",
    ),
    StateKind(
        "classes in classes, in functions and by type()",
        "class Outer:\n    class Inner: n = 1\ndef make_class(base):\n    class Made(base):\n        def who(self): return (__class__.__name__, super().who())\n    return Made\nclass Root:\n    def who(self): return 'root'\nMade = make_class(Root)\nBuilt = type('Built', (Root,), {'n': 2})\ninside, made_one = Outer.Inner(), Made()",
        "type(inside) is Outer.Inner and made_one.who() == ('Made', 'root') and isinstance(made_one, Made) and Built().who() == 'root' and Outer.Inner.__qualname__ == 'Outer.Inner'",
    ),
    StateKind(
        "instances of a class that was defined again",
        "class Twice:\n    v = 1\nold_one = Twice()\nclass Twice:\n    v = 2\nnew_one = Twice()",
        "(old_one.v, new_one.v) == (1, 2) and type(new_one) is Twice and type(old_one) is not Twice",
    ),
    StateKind(
        "__getattr__ that answers everything, or calls itself",
        "class Yes:\n    def __getattr__(self, name): return lambda *a, **k: name\nclass Proxy:\n    def __init__(self, inner): self._inner = inner\n    def __getattr__(self, name): return getattr(self._inner, name)\n    def __setattr__(self, name, value): super().__setattr__(name, value) if name == '_inner' else setattr(self._inner, name, value)\nclass Real: n = 1\nyes, proxy = Yes(), Proxy(Real())",
        "yes.anything() == 'anything' and proxy.n == 1 and type(proxy) is Proxy and setattr(proxy, 'n', 5) is None and proxy._inner.n == 5",
    ),
    StateKind(
        "__getstate__, __setstate__, __reduce__, __getnewargs__",
        "class Temperature:\n    def __init__(self, c): self.c = c\n    def __getstate__(self): return {'kelvin': self.c + 273}\n    def __setstate__(self, state): self.c = state['kelvin'] - 273\nclass Reduced:\n    def __init__(self, n): self.n = n\n    def __reduce__(self): return Reduced, (self.n,)\nclass Newed(tuple):\n    def __new__(cls, a, b): return super().__new__(cls, (a, b))\n    def __getnewargs__(self): return tuple(self)\nwarm, reduced, newed = Temperature(20), Reduced(3), Newed(1, 2)",
        "warm.c == 20 and reduced.n == 3 and newed == (1, 2) and (type(warm), type(reduced), type(newed)) == (Temperature, Reduced, Newed)",
    ),
    StateKind(
        "__del__, __init__ with arguments, __call__, operators",
        "gone = []\nclass Vector:\n    def __init__(self, *xs): self.xs = xs\n    def __add__(self, other): return Vector(*(a + b for a, b in zip(self.xs, other.xs)))\n    def __eq__(self, other): return self.xs == other.xs\n    def __call__(self, k): return Vector(*(k * x for x in self.xs))\n    def __del__(self): gone.append(self.xs)\nvector = Vector(1, 2)",
        "gone == [] and vector + vector == Vector(2, 4) and vector(3) == Vector(3, 6) and (3, 6) in gone",
    ),
    StateKind(
        "an object whose __reduce__ fails",
        "class Stubborn:\n    def __reduce__(self): raise RuntimeError('not me')\nstubborn = Stubborn()\nstubborn_too = [1, Stubborn()]",
        "type(Stubborn()) is Stubborn and stubborn_too[0] == 1",
        lost={"stubborn": "Stubborn", "stubborn_too": "Stubborn"},
        uses=("stubborn.x", "stubborn_too[1].x"),
    ),
    StateKind(
        "exceptions: own classes, causes, notes, groups",
        "class Refused(Exception):\n    def __init__(self, code, why): super().__init__(f'{code}: {why}'); self.code = code\ntry:\n    try: {}['x']\n    except KeyError as error: raise Refused(3, 'no') from error\nexcept Refused as error: refused_error = error\nrefused_error.add_note('noted')\nerrors = ExceptionGroup('several', [ValueError(1), OSError(2, 'gone', 'file')])\nundecodable = UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'bad')",
        "(refused_error.code, str(refused_error), type(refused_error.__cause__), refused_error.__notes__) == (3, '3: no', KeyError, ['noted']) and refused_error.__suppress_context__ "
        "and errors.exceptions[0].args == (1,) and type(errors.exceptions[1]) is FileNotFoundError and errors.exceptions[1].filename == 'file' and undecodable.start == 0 and undecodable.object == b'\\xff'",
        note="without their tracebacks, which are made of frames",
    ),
)

RUNNING = (
    StateKind(
        "iterators over containers",
        "walk = iter([1, 2, 3, 4]); next(walk)\nback = reversed([1, 2, 3]); next(back)\nletters = iter('abc'); next(letters)\ndict_walk = iter({'a': 1, 'b': 2}); next(dict_walk)\nset_walk = iter({5})\nrange_walk = iter(range(9)); next(range_walk)",
        "(list(walk), list(back), list(letters), list(dict_walk), list(set_walk), next(range_walk)) == ([2, 3, 4], [2, 1], ['b', 'c'], ['b'], [5], 1)",
    ),
    StateKind(
        "zip, map, filter, enumerate and itertools",
        "import itertools\nzipped = zip([1, 2], 'ab'); next(zipped)\nmapped = map(lambda x: x * 2, [1, 2]); next(mapped)\nfiltered = filter(None, [0, 1])\nnumbered = enumerate('ab', 5); next(numbered)\ncount_up = itertools.count(3, 2); next(count_up)\nround_again = itertools.cycle('ab'); next(round_again)\nchained = itertools.chain([1], [2, 3]); next(chained)\nsliced = itertools.islice(range(9), 2, 8, 3)",
        "(list(zipped), list(mapped), list(filtered), list(numbered), next(count_up), next(round_again), list(chained), list(sliced)) == ([(2, 'b')], [4], [1], [(6, 'b')], 5, 'b', [2, 3], [2, 5])",
    ),
    StateKind(
        "an iterator shared with a zip",
        "pairs_source = iter(range(6))\npairs = zip(pairs_source, pairs_source)\nnext(pairs)",
        "next(pairs_source) == 2 and next(pairs) == (3, 4)",
    ),
    StateKind(
        "iterators of an own class",
        "class Countdown:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n    def __next__(self):\n        if not self.n: raise StopIteration\n        self.n -= 1\n        return self.n\ncountdown = Countdown(3); next(countdown)",
        "list(countdown) == [1, 0]",
    ),
    StateKind(
        "a generator, started or not",
        "squares = (n * n for n in range(9)); next(squares)\nwaiting = {'generator': (n for n in 'ab'), 'n': 1}",
        "waiting['n'] == 1",
        {"squares": "generator", "waiting": "generator"},
        ("next(squares)", "list(waiting['generator'])"),
    ),
    StateKind(
        "a map over a generator",
        "over = map(str, (n for n in range(3)))",
        "True",
        {"over": "generator"},
        ("next(over)",),
        note="as a whole",
    ),
    StateKind(
        "a coroutine, an async generator",
        "async def wait_for(): return 1\nasync def flow(): yield 1\npending, flowing = wait_for(), flow()",
        "await wait_for() == 1",
        {"pending": "coroutine", "flowing": "async_generator"},
        ("pending.send(None)", "flowing.asend(None)"),
    ),
    StateKind(
        "a running asyncio task",
        "import asyncio\nasync def tick():\n    while True: await asyncio.sleep(0.1)\nticking = asyncio.create_task(tick(), name='ticker')",
        lost={"ticking": "Task"},
        beside={"ticker": "Task"},
        uses=("ticking.done()",),
        note="the variable and the task are each reported",
    ),
    StateKind(
        "asyncio's Lock, Event and Queue, unused so far",
        "import asyncio\nasync_lock, async_event, async_queue = asyncio.Lock(), asyncio.Event(), asyncio.Queue(2)\nasync_queue.put_nowait('job')",
        "async with async_lock: pass\nawait async_queue.get() == 'job' and not async_event.is_set() and async_queue.maxsize == 2",
    ),
    StateKind(
        "locks and what else threads wait for",
        "import queue, threading\nlock, rlock, happened, gate, jobs = threading.Lock(), threading.RLock(), threading.Event(), threading.Semaphore(2), queue.Queue()\nclass Guarded:\n    def __init__(self): self.lock, self.n = threading.Lock(), 1\nguarded = Guarded()",
        "guarded.n == 1",
        {
            "lock": "lock",
            "rlock": "RLock",
            "happened": "Event",
            "gate": "Semaphore",
            "jobs": "Queue",
            "guarded": "lock",
        },
        (
            "with lock: pass",
            "rlock.acquire()",
            "happened.is_set()",
            "gate.acquire()",
            "jobs.put(1)",
            "with guarded.lock: pass",
        ),
        note="only the lock itself: what else its object holds is kept",
    ),
    StateKind(
        "a running thread",
        "import threading, time\ndef work_on():\n    while True: time.sleep(0.2)\nworker = threading.Thread(target=work_on, daemon=True, name='worker-7'); worker.start()",
        lost={"worker": "Thread"},
        beside={"worker-7": "Thread"},
        uses=("worker.is_alive()",),
        note="the variable and the thread are each reported",
    ),
    StateKind(
        "an executor and its futures",
        "from concurrent import futures\nexecutor = futures.ThreadPoolExecutor(1)\nfuture = executor.submit(int, '5'); future.result()\nexecutor.shutdown()",
        "True",
        {"executor": "ThreadPoolExecutor", "future": "Future"},
        ("executor.submit(int)", "future.result()"),
    ),
    StateKind(
        "threading.local",
        "import threading\nper_thread = threading.local(); per_thread.x = 1",
        "True",
        {"per_thread": "_local"},
        ("per_thread.x",),
    ),
    StateKind(
        "context variables",
        "import contextvars\nrequest = contextvars.ContextVar('request', default='none')\ntoken = request.set('r1')",
        "True",
        {"request": "ContextVar", "token": "Token"},
        ("request.get()", "token.var"),
    ),
    StateKind(
        "a running subprocess",
        "import subprocess\nchild = subprocess.Popen(['sleep', '1234'])",
        lost={"child": "Popen"},
        beside={"sleep 1234": "process"},
        uses=("child.poll()",),
        note="the variable and the process are each reported",
    ),
    StateKind(
        "frames and tracebacks",
        "import sys\nframe = sys._getframe()\ntry: 1 / 0\nexcept ZeroDivisionError as error: trace = error.__traceback__",
        "True",
        {"frame": "frame", "trace": "traceback"},
        ("frame.f_lineno", "trace.tb_frame"),
    ),
)

HANDLES = (
    StateKind(
        "open files",
        "reading = open('read.txt', 'w+'); reading.write('text'); reading.flush()\nraw = open('read.txt', 'rb')",
        "open('read.txt').read() == 'text'",
        {"reading": "TextIOWrapper", "raw": "BufferedReader"},
        ("reading.read()", "raw.read()"),
        note="what was written to it is kept, if it was flushed and lies in /work",
    ),
    StateKind(
        "closed files",
        "with open('closed.txt', 'w', encoding='utf-8') as closed: closed.write('x')",
        "closed.closed and closed.name == 'closed.txt' and closed.mode == 'w' and open(closed.name).read() == 'x'",
    ),
    StateKind(
        "io.StringIO and io.BytesIO, with their position",
        "import io\ntext_buffer, byte_buffer = io.StringIO('abc\\ndef'), io.BytesIO(b'12345')\ntext_buffer.readline(); byte_buffer.seek(2)",
        "text_buffer.read() == 'def' and byte_buffer.read() == b'345' and byte_buffer.getvalue() == b'12345'",
    ),
    StateKind(
        "standard streams",
        "import sys\nout, streams = sys.stdout, {'err': sys.stderr}",
        "out is sys.stdout and streams['err'] is sys.stderr",
    ),
    StateKind(
        "sockets",
        "import socket\nnear, far = socket.socketpair()",
        "True",
        {"near": "socket", "far": "socket"},
        ("near.send(b'x')", "far.recv(1)"),
    ),
    StateKind(
        "sqlite3 connections, in memory and to a file",
        "import sqlite3\nin_memory, on_disk = sqlite3.connect(':memory:'), sqlite3.connect('data.db')\nwith on_disk: on_disk.execute('create table t (n)'); on_disk.execute('insert into t values (5)')\ncursor = on_disk.cursor()",
        "sqlite3.connect('data.db').execute('select n from t').fetchall() == [(5,)]",
        {"in_memory": "Connection", "on_disk": "Connection", "cursor": "Cursor"},
        ("in_memory.execute('select 1')", "on_disk.execute('select 1')", "cursor.fetchone()"),
        note="a database in /work is kept as a file; connect again",
    ),
    StateKind("mmap", "import mmap\nanonymous = mmap.mmap(-1, 100)", "True", {"anonymous": "mmap"}, ("anonymous[0]",)),
    StateKind(
        "ctypes: simple values and structures",
        "import ctypes\nclass Pixel(ctypes.Structure): _fields_ = [('x', ctypes.c_int), ('y', ctypes.c_double)]\nc_int, pixel, c_array = ctypes.c_int(5), Pixel(1, 2.5), (ctypes.c_int * 3)(1, 2, 3)",
        "c_int.value == 5 and (pixel.x, pixel.y) == (1, 2.5) and type(pixel) is Pixel and list(c_array) == [1, 2, 3]",
    ),
    StateKind(
        "ctypes: pointers",
        "import ctypes\npointed = ctypes.c_int(5)\npointer = ctypes.pointer(pointed)",
        "pointed.value == 5",
        {"pointer": "LP_c_int"},
        ("pointer.contents",),
    ),
    StateKind(
        "ctypes: loaded libraries",
        "import ctypes\nlibc = ctypes.CDLL(None)",
        "libc.abs(-5) == 5 and libc['labs'](-6) == 6",
    ),
    StateKind(
        "weak references and containers of them",
        "import weakref\nclass Thing: pass\nthing = Thing()\nweak, weak_dict, weak_set = weakref.ref(thing), weakref.WeakValueDictionary(a=thing), weakref.WeakSet([thing])\nweak_keys = weakref.WeakKeyDictionary({thing: 1})",
        "import gc\nalive = weak() is thing and weak_dict['a'] is thing and thing in weak_set and weak_keys[thing] == 1\nOut.clear(); del thing; _ = gc.collect()\nalive and weak() is None and not weak_dict and not weak_set and not weak_keys",
        alone=True,
    ),
    StateKind(
        "weak references with a callback, proxies, finalizers",
        "import weakref\nclass Watched: pass\nwatched = Watched()\ncalled, proxied, finalizer = weakref.ref(watched, print), weakref.proxy(watched), weakref.finalize(watched, int)",
        "type(watched) is Watched",
        {"called": "ReferenceType", "proxied": "ProxyType", "finalizer": "finalize"},
        ("called()", "proxied.x", "finalizer.alive"),
    ),
)

LIBRARIES = (
    StateKind(
        "numpy arrays: types, orders, structured, masked",
        "import numpy as np\nmatrix = np.arange(6, dtype='>i2').reshape(2, 3, order='F')\nrecords = np.array([(1, 'a')], dtype=[('n', 'i4'), ('s', 'U3')])\nmasked = np.ma.array([1, 2], mask=[0, 1])\nobjects = np.array([[], {}], dtype=object)\nzero_d = np.float32(1.5)\nfrozen_array = np.ones(2); frozen_array.flags.writeable = False",
        "bool(matrix.dtype == '>i2' and matrix.flags.f_contiguous and matrix[1, 2] == 5 and records['s'][0] == 'a' and masked.sum() == 1 and objects[1] == {} and type(zero_d) is np.float32 and np.array_equal(frozen_array, [1, 1]) and not frozen_array.flags.writeable)",
    ),
    StateKind(
        "numpy views that share their memory",
        "import numpy as np\nowner = np.zeros((4, 5))\nrow_view, column_view, back_view, turned = owner[1], owner[:, 2], owner[::-1, ::2], owner.T\nview_holder = {'view': owner[2:]}",
        "owner[1, 2] = 7\nowner[3, 0] = 8\nbool(row_view[2] == 7 and column_view[1] == 7 and back_view[2, 1] == 7 and turned[2, 1] == 7 and back_view[0, 0] == 8 and view_holder['view'][1, 0] == 8)",
    ),
    StateKind(
        "numpy.memmap",
        "import numpy as np\nmapped_array = np.memmap('mapped.bin', dtype='u1', mode='w+', shape=(4,)); mapped_array[0] = 9; mapped_array.flush()",
        "open('mapped.bin', 'rb').read() == b'\\t\\0\\0\\0'",
        {"mapped_array": "memmap"},
        ("mapped_array[0]",),
        note="its file is kept, if it lies in /work",
    ),
    StateKind(
        "random state: random, numpy's, generators of one's own",
        "import random, numpy as np\nown, bits = random.Random(5), np.random.default_rng(5); own.random(); bits.normal()\nnext_own, next_bits = own.getstate(), bits.bit_generator.state\nrandom.seed(3); np.random.seed(4)\nrandom.random(); np.random.random()\nnext_global = random.getstate()[1][:5], np.random.get_state()[1][:5].tolist(), np.random.get_state()[2]",
        "own.getstate() == next_own and bits.bit_generator.state == next_bits and (random.getstate()[1][:5], np.random.get_state()[1][:5].tolist(), np.random.get_state()[2]) == next_global",
    ),
    StateKind(
        "numpy print options and error handling",
        "import numpy as np\nnp.set_printoptions(precision=2, formatter={'bool': lambda b: 'yes' if b else 'no'}); np.seterr(divide='raise')",
        "str(np.array([1.23456])) == '[1.23]' and str(np.array([True])) == '[yes]' and np.geterr()['divide'] == 'raise'",
    ),
    StateKind(
        "pandas: frames, types, indexes",
        "import pandas as pd\nframe_1 = pd.DataFrame({'n': [1, 2, None], 'c': pd.Categorical(['b', 'a', 'b'], ['b', 'a'], ordered=True), 't': pd.date_range('2024-03-30', periods=3, tz='Europe/Berlin'), 'i': pd.array([1, None, 3], dtype='Int64')}, index=pd.MultiIndex.from_tuples([('x', 1), ('x', 2), ('y', 1)], names=['k', 'l']))\nframe_1.attrs['source'] = 'test'\nframe_2, kept_copy, series = frame_1, frame_1.copy(), frame_1['n']\ngrouped = frame_1.groupby('c', observed=True)",
        "pd.testing.assert_frame_equal(frame_1, kept_copy)\nframe_1 is frame_2 and frame_1.attrs == {'source': 'test'} and frame_1['c'].cat.ordered and str(frame_1['t'].dtype.tz) == 'Europe/Berlin' and frame_1.index.names == ['k', 'l'] and frame_1.loc[('y', 1), 'i'] == 3 and grouped['i'].sum().to_dict() == {'b': 4, 'a': 0}",
    ),
    StateKind(
        "pandas: copies on write stay copies",
        "import pandas as pd\nwhole = pd.DataFrame({'a': [1, 2, 3]})\nhead, column = whole[:2], whole['a']",
        "column.iloc[0] = 99\nhead.iloc[1, 0] = 98\nwhole['a'].tolist() == [1, 2, 3] and column[0] == 99 and head['a'].tolist() == [1, 98]",
    ),
    StateKind(
        "pandas options",
        "import pandas as pd\npd.set_option('display.max_rows', 7); pd.options.display.float_format = '{:.1f}'.format",
        "pd.get_option('display.max_rows') == 7 and str(pd.Series([1.25])).split()[1] == '1.2'",
    ),
    StateKind(
        "pandas accessors that a cell registered",
        "import pandas as pd\n@pd.api.extensions.register_dataframe_accessor('shop')\nclass ShopAccessor:\n    def __init__(self, frame): self.frame = frame\n    def rows(self): return len(self.frame)",
        "pd.DataFrame({'x': [1, 2]}).shop.rows() == 2",
    ),
    StateKind(
        "matplotlib figures",
        "import io, matplotlib.pyplot as plt\nfigure, (upper, lower) = plt.subplots(2)\n(line,) = upper.plot([1, 2, 3], [3, 1, 2], label='l'); lower.bar(['a', 'b'], [1, 2]); upper.set_title('title'); upper.legend()\nplt.close(figure)",
        "image = io.BytesIO()\nline.set_color('red')\nfigure.savefig(image)\nlist(upper.lines[0].get_ydata()) == [3, 1, 2] and upper.lines[0] is line and figure.axes == [upper, lower] and upper.get_title() == 'title' and len(lower.patches) == 2 and image.tell() > 5000",
    ),
    StateKind(
        "matplotlib rcParams",
        "import matplotlib\nmatplotlib.rcParams['lines.linewidth'] = 4.5\nmatplotlib.rcParams['axes.prop_cycle'] = matplotlib.cycler(color=['red', 'blue'])",
        "matplotlib.rcParams['lines.linewidth'] == 4.5 and matplotlib.rcParams['axes.prop_cycle'].by_key() == {'color': ['red', 'blue']}",
    ),
    StateKind(
        "scipy: sparse matrices, distributions, interpolators",
        "import numpy as np\nfrom scipy import interpolate, sparse, stats\nsparse_matrix, frozen_norm = sparse.csr_matrix(np.eye(3)), stats.norm(5, 2)\ncurve = interpolate.CubicSpline([0, 1, 2], [0, 1, 4])",
        "bool(sparse_matrix.sum() == 3 and sparse_matrix.format == 'csr' and frozen_norm.mean() == 5 and abs(curve(1.5) - 2.25) < 0.2)",
    ),
    StateKind(
        "warnings filters and logging",
        "import logging, sys, warnings\nwarnings.filterwarnings('error', message='exactly this')\nclass Listed(logging.Handler):\n    def __init__(self): super().__init__(); self.seen = []\n    def emit(self, record): self.seen.append(self.format(record))\nlog = logging.getLogger('shop.orders'); log.setLevel('DEBUG'); log.propagate = False\nlisted = Listed(); listed.setFormatter(logging.Formatter('%(levelname)s %(message)s')); log.addHandler(listed)\nlog.addHandler(logging.FileHandler('shop.log', 'w'))\nlog.info('first')",
        "raised = False\ntry: warnings.warn('exactly this')\nexcept UserWarning: raised = True\nlogging.getLogger('shop.orders').debug('second')\nraised and log is logging.getLogger('shop.orders') and listed.seen == ['INFO first', 'DEBUG second'] and open('shop.log').read() == 'first\\nsecond\\n'",
    ),
    StateKind(
        "csv: the longest field, dialects",
        "import csv\ncsv.field_size_limit(999_999); csv.register_dialect('shop', delimiter='|')",
        "csv.field_size_limit() == 999_999 and csv.get_dialect('shop').delimiter == '|'",
    ),
    StateKind(
        "logging: disabled levels, names of levels, levels of the kernel's loggers",
        "import logging\nlogging.disable(logging.DEBUG - 1); logging.addLevelName(5, 'TRACE'); logging.getLogger('asyncio').setLevel('ERROR')",
        "logging.root.manager.disable == 9 and logging.getLevelName(5) == 'TRACE' and logging.getLogger('asyncio').level == logging.ERROR",
    ),
    StateKind(
        "mimetypes",
        "import mimetypes\nmimetypes.add_type('application/x-shop', '.shop')",
        "mimetypes.guess_type('a.shop')[0] == 'application/x-shop' and mimetypes.guess_extension('application/x-shop') == '.shop'",
    ),
    StateKind(
        "multiprocessing's start method",
        "import multiprocessing\nmultiprocessing.set_start_method('spawn')",
        "multiprocessing.get_start_method() == 'spawn'",
        alone=True,
    ),
    StateKind(
        "sqlite3 adapters and converters",
        "import sqlite3\nclass Coin:\n    def __init__(self, n): self.n = n\nsqlite3.register_adapter(Coin, lambda coin: str(coin.n)); sqlite3.register_converter('coin', lambda text: Coin(int(text)))",
        "sqlite3.connect(':memory:', detect_types=sqlite3.PARSE_COLNAMES).execute('select ? as \"n [coin]\"', (Coin(5),)).fetchone()[0].n == 5",
    ),
    StateKind(
        "codecs and error handlers that cells registered",
        "import codecs\ndef find_codec(name): return codecs.lookup('utf-8') if name == 'shopcodec' else None\ncodecs.register(find_codec); codecs.register_error('shop', lambda error: ('?', error.end))",
        "'a'.encode('shopcodec') == b'a' and 'ä'.encode('ascii', 'shop') == b'?'",
    ),
    StateKind(
        "locale, calendar, decimal's defaults, time zones' folders",
        "import calendar, decimal, locale, zoneinfo\n_set = locale.setlocale(locale.LC_TIME, 'C.UTF-8'); calendar.setfirstweekday(6); decimal.DefaultContext.prec = 9; _time_path = zoneinfo.TZPATH; zoneinfo.reset_tzpath(['/work/zones', *_time_path])",
        "locale.setlocale(locale.LC_TIME) == 'C.UTF-8' and calendar.firstweekday() == 6 and decimal.DefaultContext.prec == 9 and zoneinfo.TZPATH[0] == '/work/zones'",
        alone=True,
    ),
    StateKind(
        "asyncio: debug mode, exception handler",
        "import asyncio\nloop_errors = []\ndef on_loop_error(loop, context): loop_errors.append(context)\nasyncio.get_running_loop().slow_callback_duration = 5; asyncio.get_running_loop().set_exception_handler(on_loop_error)",
        "asyncio.get_running_loop().slow_callback_duration == 5 and asyncio.get_running_loop().get_exception_handler() is on_loop_error",
        alone=True,
    ),
    StateKind(
        "resource limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200",
        alone=True,
    ),
    StateKind(
        "matplotlib: color sequences, projections, defaults",
        "import matplotlib as mpl, matplotlib.axes, matplotlib.projections\nmpl.color_sequences.register('shop', ['r', 'g']); mpl.rcParamsDefault['font.size'] = 9\nclass ShopMap(mpl.axes.Axes): name = 'shopmap'\nmpl.projections.register_projection(ShopMap)",
        "mpl.color_sequences['shop'] == ['r', 'g'] and mpl.rcParamsDefault['font.size'] == 9 and mpl.projections.get_projection_class('shopmap') is ShopMap",
    ),
    StateKind(
        "pandas extension types, virtual subclasses, import finders",
        "import collections.abc, pandas as pd, sys\n@pd.api.extensions.register_extension_dtype\nclass Money(pd.api.extensions.ExtensionDtype):\n    name = 'money'\n    type = int\n    @classmethod\n    def construct_array_type(cls): return None\nclass Sizeless: pass\n_sized = collections.abc.Sized.register(Sizeless)\nclass ShopFinder:\n    def find_spec(self, *_): return None\nsys.meta_path.append(ShopFinder())",
        "type(pd.api.types.pandas_dtype('money')) is Money and issubclass(Sizeless, collections.abc.Sized) and type(sys.meta_path[-1]) is ShopFinder",
    ),
    StateKind(
        "matplotlib: added fonts, color maps, styles",
        "import matplotlib, matplotlib.font_manager, matplotlib.style, shutil\nshutil.copy(matplotlib.font_manager.fontManager.ttflist[0].fname, '/work/own.ttf'); matplotlib.font_manager.fontManager.addfont('/work/own.ttf')\nmatplotlib.colormaps.register(matplotlib.colors.ListedColormap(['red', 'blue'], name='shop')); matplotlib.style.library['shop'] = matplotlib.RcParams({'lines.linewidth': 9})",
        "any(font.fname == '/work/own.ttf' for font in matplotlib.font_manager.fontManager.ttflist) and matplotlib.colormaps['shop'].N == 2 and matplotlib.style.library['shop']['lines.linewidth'] == 9",
    ),
)

MODULES = (
    StateKind(
        "imports, also under another name",
        "import json as js, os.path as osp, collections.abc\nfrom itertools import chain as link",
        "import sys\njs is sys.modules['json'] and osp is sys.modules['os.path'] and collections.abc.Sized and list(link('a')) == ['a']",
    ),
    StateKind(
        "a module in /work, and what changed in it",
        "open('helper.py', 'w').write('counter = 1\\nitems = []\\ndef bump():\\n    global counter\\n    counter += 1\\n    return counter\\nclass Helper: n = 1\\n')\nimport helper\nhelper.bump(); helper.items.append('x'); helper.Helper.n = 5\nhelper_items, one_helper = helper.items, helper.Helper()",
        "helper.counter == 2 and helper.bump() == 3 and helper_items is helper.items == ['x'] and type(one_helper) is helper.Helper and helper.Helper.n == 5",
    ),
    StateKind(
        "a module that a cell made",
        "import sys, types\nmade_module = types.ModuleType('made_module'); made_module.x = [1]\nexec('def get(): return x', made_module.__dict__)\nsys.modules['made_module'] = made_module",
        "import sys\nimport made_module as imported_again\nmade_module.get() == [1] and imported_again is made_module and made_module.get() is made_module.x",
    ),
    StateKind(
        "attributes set and replaced in a library",
        "import math, textwrap\nmath.tau_again = 6.28\n_plain_dedent = textwrap.dedent\ntextwrap.dedent = lambda text: 'patched ' + _plain_dedent(text)",
        "math.tau_again == 6.28 and textwrap.dedent(' a') == 'patched a'",
    ),
    StateKind(
        "an attribute deleted from a library", "import string\ndel string.capwords", "not hasattr(string, 'capwords')"
    ),
    StateKind(
        "methods set and replaced in a library's class",
        "import pandas as pd, pathlib, textwrap\ndef biggest(self, column): return self[column].max()\npd.DataFrame.biggest = biggest\npathlib.PurePath.shout = property(lambda self: self.name.upper())\ntextwrap.TextWrapper.quiet = classmethod(lambda cls: cls.__name__)",
        "pd.DataFrame({'n': [1, 5]}).biggest('n') == 5 and pathlib.Path('a/b').shout == 'B' and textwrap.TextWrapper.quiet() == 'TextWrapper' and pd.DataFrame.biggest is biggest",
    ),
    StateKind(
        "a plain value set in a library's class",
        "import textwrap\ntextwrap.TextWrapper.house_style = {'width': 40}",
        "textwrap.TextWrapper.house_style == {'width': 40}",
    ),
    StateKind(
        "what libraries make when they are first used: locks, caches, lazy attributes",
        "import string, threading\nfrom tqdm import tqdm\nstring.Template.guard = threading.RLock()\n_bars = [_ for _ in tqdm(range(3))]",
        "[n for n in tqdm(range(3))] == [0, 1, 2] and string.Template('$a').substitute(a=1) == '1'",
        note="left to the library, which makes them again",
    ),
    StateKind(
        "an attribute replaced in a library's class or object",
        "import reprlib, string\nstring.Template.delimiter = '%'\nreprlib.aRepr.maxlist = 2",
        "string.Template.delimiter == '%' and reprlib.aRepr.maxlist == 2",
    ),
    StateKind(
        "entries added to a library's registry",
        "import copyreg, shutil, xml.etree.ElementTree as etree\netree.register_namespace('shop', 'urn:shop')\ndef pack(*args, **kwargs): return 'packed'\nshutil.register_archive_format('shop', pack)",
        "etree.tostring(etree.Element('{urn:shop}a')) == b'<shop:a xmlns:shop=\"urn:shop\" />' and 'shop' in dict(shutil.get_archive_formats())",
    ),
    StateKind(
        "hooks of the interpreter: sys, threading, warnings",
        "import sys, threading, warnings\ndef unraised(*args): pass\nsys.unraisablehook = unraised; threading.excepthook = unraised; warnings.showwarning = unraised; sys.tracebacklimit = 50",
        "sys.unraisablehook is unraised and threading.excepthook is unraised and warnings.showwarning is unraised and sys.tracebacklimit == 50",
        alone=True,
    ),
    StateKind(
        "a built-in function added and replaced",
        "import builtins\nbuiltins.shout_out = lambda text: text.upper()",
        "shout_out('a') == 'A'",
    ),
)

SESSION = (
    StateKind(
        "In, Out and the count of cells",
        "'the answer', 42",
        "number = next(n for n, value in Out.items() if value == ('the answer', 42))\nIn[number] == \"'the answer', 42\" and globals()[f'_{number}'] is Out[number] and globals()[f'_i{number}'] == In[number] and get_ipython().execution_count == len(In)",
    ),
    StateKind(
        "magics and aliases that cells defined",
        "from IPython.core.magic import Magics, line_magic, magics_class, register_line_cell_magic, register_line_magic\n@register_line_magic\ndef greet(line): return 'hello ' + line\n@register_line_cell_magic\ndef both_ways(line, cell=None): return (line, cell)\n@magics_class\nclass Counting(Magics):\n    @line_magic\n    def counted(self, line): return len(line)\nget_ipython().register_magics(Counting)\nget_ipython().run_line_magic('alias', 'say echo said')",
        "shell = get_ipython()\nshell.run_line_magic('greet', 'you') == 'hello you' and shell.run_cell_magic('both_ways', 'a', 'b') == ('a', 'b') and shell.run_line_magic('counted', 'four') == 4 and ('say', 'echo said') in shell.alias_manager.aliases",
    ),
    StateKind(
        "an extension that was loaded",
        "%load_ext autoreload",
        "'IPython.extensions.autoreload' in get_ipython().extension_manager.loaded and callable(get_ipython().find_line_magic('autoreload'))",
    ),
    StateKind(
        "hooks before and after cells",
        "after_cells = []\ndef note_cell(result=None): after_cells.append(1)\nget_ipython().events.register('post_run_cell', note_cell)",
        "len(after_cells) > 1 and note_cell in get_ipython().events.callbacks['post_run_cell']",
    ),
    StateKind(
        "how the shell shows values",
        "class Money: pass\nmoney = Money()\nget_ipython().display_formatter.formatters['text/plain'].for_type(Money, lambda value, printer, cycle: printer.text('EUR'))\nget_ipython().sphinxify_docstring = True\n_precision = get_ipython().run_line_magic('precision', '3')",
        "plain = get_ipython().display_formatter.formatters['text/plain']\nplain(money) == 'EUR' and plain(1 / 3) == '0.333' and get_ipython().sphinxify_docstring is True",
        alone=True,
    ),
    StateKind(
        "from __future__ import",
        "from __future__ import annotations",
        "def unknown(x: NotDefinedAnywhere): pass\nunknown.__annotations__ == {'x': 'NotDefinedAnywhere'}",
        alone=True,
    ),
    StateKind(
        "sys.path, os.environ",
        "import os, sys\nsys.path.insert(0, '/work/lib'); os.environ['SHOP'] = 'open'; os.environ.pop('LANG', None)",
        "sys.path[0] == '/work/lib' and os.environ['SHOP'] == 'open' and 'LANG' not in os.environ and os.popen('echo $SHOP').read() == 'open\\n'",
    ),
    StateKind(
        "the working directory",
        "import os\nos.makedirs('/work/sub/dir', exist_ok=True); os.chdir('/work/sub/dir')",
        "os.getcwd() == '/work/sub/dir'",
        alone=True,
    ),
    StateKind(
        "the interpreter's settings: recursion limit, umask, gc, digits, the size of threads' stacks",
        "import gc, os, sys, threading\nthreading.stack_size(1 << 20); sys.setrecursionlimit(5000); sys.set_int_max_str_digits(9000); _old = os.umask(0o077); gc.set_threshold(900, 11, 12)",
        "mask = os.umask(0o077)\nthreading.stack_size() == 1 << 20 and sys.getrecursionlimit() == 5000 and sys.get_int_max_str_digits() == 9000 and mask == 0o077 and gc.get_threshold() == (900, 11, 12)",
        alone=True,
    ),
    StateKind(
        "signal handlers",
        "import os, signal\ncaught = []\ndef on_signal(number, frame): caught.append(number)\n_before = signal.signal(signal.SIGUSR1, on_signal)",
        "os.kill(os.getpid(), signal.SIGUSR1)\nimport time; time.sleep(0.1)\ncaught == [signal.SIGUSR1] and signal.getsignal(signal.SIGUSR1) is on_signal",
        alone=True,
    ),
    StateKind(
        "atexit callbacks",
        "import atexit\ndef say_goodbye(): pass\n_registered = atexit.register(say_goodbye)",
        "callable(say_goodbye)",
        beside={"say_goodbye": "atexit callback"},
        note="a kernel that moves does not exit",
        alone=True,
    ),
    StateKind(
        "trace and profile functions",
        "import sys\ndef watch(frame, event, argument): return None\nsys.settrace(watch)",
        "callable(watch)",
        beside={"sys.settrace": "function"},
        alone=True,
    ),
)

FILES = (
    StateKind(
        "files and folders below /work: rights, links, empty folders, times",
        "import os\nos.makedirs('/work/tree/empty'); os.makedirs('/work/tree/full')\nopen('/work/tree/full/run.sh', 'w').write('x'); os.chmod('/work/tree/full/run.sh', 0o750); os.utime('/work/tree/full/run.sh', (1e9, 1e9))\nos.symlink('run.sh', '/work/tree/full/link'); os.symlink('/nowhere', '/work/tree/dangling'); os.link('/work/tree/full/run.sh', '/work/tree/hard')\nopen('/work/tree/ünï \\n', 'w').close()",
        "os.path.isdir('/work/tree/empty') and os.stat('/work/tree/full/run.sh').st_mode & 0o777 == 0o750 and os.stat('/work/tree/full/run.sh').st_mtime == 1e9 and os.readlink('/work/tree/full/link') == 'run.sh' and os.readlink('/work/tree/dangling') == '/nowhere' and os.path.samefile('/work/tree/hard', '/work/tree/full/run.sh') and os.path.exists('/work/tree/ünï \\n')",
    ),
    StateKind(
        "a folder that may not be written to",
        "import os\nos.makedirs('/work/closed/in'); open('/work/closed/in/file', 'w').write('x'); os.chmod('/work/closed/in', 0o555); os.chmod('/work/closed', 0o555)",
        "open('/work/closed/in/file').read() == 'x' and os.stat('/work/closed').st_mode & 0o777 == os.stat('/work/closed/in').st_mode & 0o777 == 0o555",
    ),
    StateKind(
        "files and folders that may not be read or entered",
        "import os\nopen('/work/secret', 'w').write('s'); os.chmod('/work/secret', 0)\nfor _mode in (0, 0o300, 0o600):\n    os.makedirs(f'/work/shut{_mode}/in'); open(f'/work/shut{_mode}/in/file', 'w').write('x'); os.chmod(f'/work/shut{_mode}/in', 0); os.chmod(f'/work/shut{_mode}', _mode)",
        "shut_found = [os.stat('/work/secret').st_mode & 0o777 == 0]\nos.chmod('/work/secret', 0o600); shut_found += [open('/work/secret').read() == 's']; os.chmod('/work/secret', 0)\nfor _mode in (0, 0o300, 0o600):\n    shut_found += [os.stat(f'/work/shut{_mode}').st_mode & 0o777 == _mode]; os.chmod(f'/work/shut{_mode}', 0o700); os.chmod(f'/work/shut{_mode}/in', 0o700)\n    shut_found += [open(f'/work/shut{_mode}/in/file').read() == 'x']; os.chmod(f'/work/shut{_mode}/in', 0); os.chmod(f'/work/shut{_mode}', _mode)\nall(shut_found)",
    ),
    StateKind(
        "files outside /work",
        "open('/tmp/notes.txt', 'w').write('x')\nopen('/dev/shm/block', 'w').write('x')",
        beside={"/tmp/notes.txt": "file", "/dev/shm/block": "file"},
    ),
)

GROUPS: dict[str, tuple[StateKind, ...]] = {
    "The session": SESSION,
    "Values": VALUES,
    "Containers": CONTAINERS,
    "Functions": FUNCTIONS,
    "Classes and their instances": CLASSES,
    "What stands in the middle of something": RUNNING,
    "Files, sockets and memory": HANDLES,
    "Libraries": LIBRARIES,
    "Modules": MODULES,
    "The file system": FILES,
}
KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)
