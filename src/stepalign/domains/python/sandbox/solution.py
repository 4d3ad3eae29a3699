"""The process that runs a solution: untrusted code, confined, answering calls with plain values.

It never gets the tests. Run as a script by ``run_tests``; standard library only.
"""

import json
import sys
import types

_MAX_TEXT = 2000


def main():
    job = json.load(sys.stdin)
    sys.path.insert(0, job["library"])
    import confinement  # pyright: ignore[reportMissingImports]
    import source  # pyright: ignore[reportMissingImports]
    import values  # pyright: ignore[reportMissingImports]

    sys.path.pop(0)
    for name in ("confinement", "source", "values"):
        del sys.modules[name]  # a file of the solution may have that name
    channel = values.enter(job)
    files = source.Files("solution.py", job["code"], job["files"])
    source.watch_time()
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

    module = sys.modules["solution"] = types.ModuleType("solution")
    space = module.__dict__

    def fault(error):
        try:
            told = files.describe(error, frames=6)[0]
            if isinstance(error, source.TimeLimit):
                return {"late": told}
            kinds = [kind.__name__ for kind in type(error).__mro__]
            return {"fault": kinds, "message": str(error)[:_MAX_TEXT], "traceback": told}
        except BaseException:
            return {"fault": ["Exception"], "message": "", "traceback": ""}

    def answer(work, arguments=()):
        """The outcome of some work: a value with the arguments as they are now, or a fault."""
        try:
            value = work()
            return {
                "value": values.encode(value, handle),
                "callable": callable(value),
                "arguments": values.encode(list(arguments), handle),
            }
        except BaseException as error:  # also SystemExit: it ends no test
            return fault(error)

    channel.send(answer(lambda: exec(compile(job["code"], "solution.py", "exec", dont_inherit=True), space)))
    while True:
        request = channel.receive()
        arguments = []

        def work(request=request, arguments=arguments):
            if "name" in request:
                if request["name"] not in space:
                    raise NameError(f"name {request['name']!r} is not defined")
                return space[request["name"]]
            if "module" in request:
                return __import__(request["module"], {}, {}, request["names"])
            arguments += values.decode(request["arguments"], objects.__getitem__)
            keywords = values.decode(request["keywords"], objects.__getitem__)
            target = objects[request["handle"]]
            if request["method"] is None:
                return target(*arguments, **keywords)
            if request["method"] == "__getattr__":
                return getattr(target, *arguments)
            return _OPERATORS[request["method"]](target, *arguments)

        outcome = answer(work, arguments)
        try:
            channel.send(outcome)
        except ValueError as error:
            channel.send(fault(error))


_OPERATORS = {
    "__iter__": iter,
    "__next__": next,
    "__len__": len,
    "__bool__": bool,
    "__str__": str,
    "__getitem__": lambda target, key: target[key],
    "__contains__": lambda target, key: key in target,
}


if __name__ == "__main__":
    main()
