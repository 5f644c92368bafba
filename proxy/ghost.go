package proxy

// ghost is a connection that was given up while it was made, and that its machine may have accepted all the
// same. Its slot is held until the machine's side has closed, so that the app itself never counts one more.
type ghost struct {
	loop  *loop
	m     *sock
	app   *app
	seat  seat
	alarm alarm
}

// haunt keeps a slot for a machine's connection to which FIN was sent.
func (l *loop) haunt(m *sock, a *app, st seat) {
	g := &ghost{loop: l, m: m, app: a, seat: st}
	m.flow, m.ghost = nil, g
	g.alarm.ring = g.end
	l.ghosts[g] = true
	l.set(&g.alarm, l.now.Add(l.times.linger))
	g.look()
}

// look reads what the machine sends, to nobody, until its end.
func (g *ghost) look() {
	for range rounds {
		n, e := sysRead(g.m.fd, g.loop.buf)
		if e == errAgain {
			return
		}
		if e != 0 || n == 0 {
			g.end()
			return
		}
	}
	g.loop.set(&g.alarm, g.loop.now) // it does not stop to send: reset it
}

func (g *ghost) end() {
	g.loop.cancel(&g.alarm)
	delete(g.loop.ghosts, g)
	g.loop.drop(g.m, true)
	g.app.release(g.seat)
}
