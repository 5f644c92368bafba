package proxy

import (
	"golang.org/x/sys/unix"
)

const (
	pipeSize  = 1 << 20 // what is asked for; the kernel may refuse it to users other than root
	pipesKept = 64      // idle ones, per loop
	pipesMost = 1024    // in use, per loop; beyond that bytes are copied
)

// pipe holds bytes in the kernel on their way from one socket to another.
type pipe struct {
	r, w int32
	size int
}

// pipes are the idle pipes of one loop. A connection has one only while bytes move.
type pipes struct {
	idle []pipe
	used int
}

func (ps *pipes) get() (pipe, error) {
	if n := len(ps.idle); n > 0 {
		p := ps.idle[n-1]
		ps.idle = ps.idle[:n-1]
		ps.used++
		return p, nil
	}
	if ps.used >= pipesMost {
		return pipe{}, unix.EMFILE
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return pipe{}, err
	}
	p := pipe{r: int32(fds[0]), w: int32(fds[1]), size: 64 << 10}
	if n, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize); err == nil {
		p.size = n
	}
	ps.used++
	return p, nil
}

// put takes an empty pipe back.
func (ps *pipes) put(p pipe) {
	ps.used--
	if len(ps.idle) < pipesKept {
		ps.idle = append(ps.idle, p)
		return
	}
	p.close()
}

// drop closes a pipe that is not empty.
func (ps *pipes) drop(p pipe) {
	ps.used--
	p.close()
}

func (ps *pipes) close() {
	for _, p := range ps.idle {
		p.close()
	}
	ps.idle = nil
}

func (p pipe) close() {
	sysClose(p.r)
	sysClose(p.w)
}
