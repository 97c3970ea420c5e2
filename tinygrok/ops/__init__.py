"""Operations: a forward and a backward side by side, one file a kind, functions in place of layers.

    y, cache = op_forward(dev, x, parameters, options)
    dx = op_backward(dev, dy, cache, gradients of the parameters)

forward returns y and the cache, a tuple of exactly what backward reads. Docstrings give the formula
of both; in examples/_reference.py the operations whose code is shaped by speed stand once more, as
plainly as they can be written.

dX        dL/dX, of the shape of X, for a loss L that nobody needs to know: dy comes in, dx and the
          gradients of the parameters go out
xdot      a tangent, the derivative of X along some direction; op_tangent maps xdot to ydot
xbar, lam the adjoints dL/dX and dL/dxdot of a loss L that depends on values and tangents; op_pair
          makes those of x and xdot from those of y and ydot, so that for every dx and dxdot
          <xbar of y, dy> + <lam of ydot, dydot> = <xbar of x, dx> + <lam of xdot, dxdot>
shapes    E ensemble, B batch, T time, C channels, H heads, D head size, K in, N out, V classes;
          (..., B, N): any leading axes, such as members of an ensemble; images are (B, H, W, C)
out=, dx= an array to write the result into, which may often be the input (then the docstring says
          so); without it a new one
dw, db    arrays that backward writes the gradients into; None where nobody asks for one.
          accumulate=True adds to them: a tied weight, a further shard of the batch. Nothing is ever
          set to zero first
*_host    runs on the host with NumPy, and may hand over device arrays: tables, masks, checks. All
          other code uses dev.xp, which is numpy or cupy
dev.workspace   named scratch arrays, one set a thread: ask for them where they are used. Two that
          are alive at the same time have two names
"""
