"""The process that runs a solution: untrusted code, confined, answering calls with plain values.

It never gets the tests. Run as a script by ``run_tests``; standard library only.
"""

import json
import sys
import traceback

_MAX_TEXT = 2000


def main():
    job = json.load(sys.stdin)
    sys.path.insert(0, job["library"])
    import confinement  # pyright: ignore[reportMissingImports]
    import values  # pyright: ignore[reportMissingImports]

    sys.path.pop(0)
    channel = values.enter(job)
    try:
        confinement.confine(cpu_seconds=job["cpu_seconds"], memory_bytes=job["memory_bytes"])
    except confinement.Unavailable as reason:
        channel.send({"unavailable": str(reason)})
        return
    channel.send({})  # from here on the code has its say in all that is sent
    objects = []

    def handle(value):
        objects.append(value)
        return len(objects) - 1

    space = {"__name__": "solution", "__builtins__": __builtins__}
    channel.send(_answer(lambda: exec(_compiled(job["code"]), space), values, handle))
    while True:
        request = channel.receive()
        arguments = []

        def work(request=request, arguments=arguments):
            if "name" in request:
                if request["name"] not in space:
                    raise NameError(f"name {request['name']!r} is not defined")
                return space[request["name"]]
            arguments += values.decode(request["arguments"], objects.__getitem__)
            keywords = values.decode(request["keywords"], objects.__getitem__)
            target = objects[request["handle"]]
            if request["method"] is None:
                return target(*arguments, **keywords)
            if request["method"] == "__getattr__":
                return getattr(target, *arguments)
            return _OPERATORS[request["method"]](target, *arguments)

        answer = _answer(work, values, handle, arguments)
        try:
            channel.send(answer)
        except ValueError as error:
            channel.send(_fault(error))


_OPERATORS = {
    "__iter__": iter,
    "__next__": next,
    "__len__": len,
    "__bool__": bool,
    "__str__": str,
    "__getitem__": lambda target, key: target[key],
    "__contains__": lambda target, key: key in target,
}


def _compiled(code):
    import linecache

    linecache.cache["solution.py"] = (len(code), None, code.splitlines(keepends=True), "solution.py")
    return compile(code, "solution.py", "exec", dont_inherit=True)


def _answer(work, values, handle, arguments=()):
    """The outcome of some work: a value with the arguments as they are now, or a fault."""
    try:
        value = work()
        return {
            "value": values.encode(value, handle),
            "callable": callable(value),
            "arguments": values.encode(list(arguments), handle),
        }
    except BaseException as error:  # also SystemExit: it ends no test
        return _fault(error)


def _fault(error):
    try:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == "solution.py"]
        lines = traceback.format_list(frames[-6:]) + traceback.format_exception_only(error)
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"fault": kinds, "message": str(error)[:_MAX_TEXT], "traceback": "".join(lines)[-_MAX_TEXT:]}
    except BaseException:
        return {"fault": ["Exception"], "message": "", "traceback": ""}


if __name__ == "__main__":
    main()
