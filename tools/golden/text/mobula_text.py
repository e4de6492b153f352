"""The text module for Python: links the static libraries of a build folder into one shared object and calls it."""
import ctypes
import pathlib
import subprocess
import tempfile


class Buf(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(ctypes.c_char)), ("len", ctypes.c_size_t), ("cap", ctypes.c_size_t)]


class Ids(ctypes.Structure):
    _fields_ = [("at", ctypes.POINTER(ctypes.c_int32)), ("len", ctypes.c_size_t), ("cap", ctypes.c_size_t)]


def load(build):
    build = pathlib.Path(build)
    out = pathlib.Path(tempfile.mkdtemp(prefix="mobula-text-")) / "text.so"
    deps = subprocess.check_output(["pkg-config", "--libs", "jansson", "libpcre2-8", "libutf8proc", "libuv",
                                    "libxxhash"], text=True).split()
    subprocess.check_call(["cc", "-shared", "-o", out, "-Wl,--whole-archive", build / "engine/text/libmob_text.a",
                           build / "runtime/base/libmob_base.a", "-Wl,--no-whole-archive", *deps, "-lpthread", "-lm"])
    lib = ctypes.CDLL(str(out))
    lib.mob_errmsg.restype = ctypes.c_char_p
    for name in ("mob_detok_new", "json_loadb"):
        getattr(lib, name).restype = ctypes.c_void_p
    return lib


class Error(Exception):
    pass


class Tokenizer:
    def __init__(self, lib, folder):
        self.lib, self.tok = lib, ctypes.c_void_p()
        self.check(lib.mob_tokenizer_open(str(folder).encode(), ctypes.byref(self.tok)))

    def check(self, status):
        if status:
            raise Error(self.lib.mob_errmsg().decode(errors="replace"))

    def encode(self, text, special=False):
        raw, ids = text.encode(), Ids()
        self.check(self.lib.mob_tokenizer_encode(self.tok, raw, ctypes.c_size_t(len(raw)), special, ctypes.byref(ids)))
        out = ids.at[:ids.len]
        self.lib.free(ids.at)
        return out

    def decode(self, ids, skip):
        buf, array = Buf(), (ctypes.c_int32 * len(ids))(*ids)
        self.check(self.lib.mob_tokenizer_decode(self.tok, array, ctypes.c_size_t(len(ids)), skip, ctypes.byref(buf)))
        return self.take(buf)

    def stream(self, ids, skip):
        buf, d = Buf(), ctypes.c_void_p(self.lib.mob_detok_new(self.tok, skip))
        for i in ids:
            self.lib.mob_detok_push(d, ctypes.c_int32(i), ctypes.byref(buf))
            ctypes.string_at(buf.data, buf.len).decode()  # never cut inside a character
        self.lib.mob_detok_flush(d, ctypes.byref(buf))
        self.lib.mob_detok_free(d)
        return self.take(buf)

    def take(self, buf):
        out = ctypes.string_at(buf.data, buf.len).decode() if buf.len else ""
        self.lib.mob_buf_free(ctypes.byref(buf))
        return out


class Template:
    def __init__(self, lib, source):
        self.lib, self.tpl, raw = lib, ctypes.c_void_p(), source.encode()
        if lib.mob_template_parse(raw, ctypes.c_size_t(len(raw)), ctypes.byref(self.tpl)):
            raise Error(lib.mob_errmsg().decode(errors="replace"))

    def render(self, variables_json):
        raw, buf = variables_json.encode(), Buf()
        variables = ctypes.c_void_p(self.lib.json_loadb(raw, ctypes.c_size_t(len(raw)), ctypes.c_size_t(0x10), None))
        status = self.lib.mob_template_render(self.tpl, variables, ctypes.byref(buf))
        out = ctypes.string_at(buf.data, buf.len) if buf.len else b""
        self.lib.mob_buf_free(ctypes.byref(buf))
        if status:
            raise Error(self.lib.mob_errmsg().decode(errors="replace"))
        return out.decode()

    def __del__(self):
        self.lib.mob_template_free(self.tpl)
