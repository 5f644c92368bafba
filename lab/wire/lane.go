package wire

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFrame is the largest that a tap gives: its header, an Ethernet header and 64 KiB.
	maxFrame = 10 + 18 + 65536
	// smallFrame fits what an MTU of 1500 lets through.
	smallFrame = 2048
	// maxWaiting bounds the bytes in one direction of a cable: 3 Gbit/s for 80 ms.
	maxWaiting = 32 << 20
	// maxFrames bounds the frames likewise.
	maxFrames = 16 << 10
)

// lane is one direction of a cable.
type lane struct {
	from, to *os.File
	now      *atomic.Pointer[setting]
	queue    chan frame
	waiting  atomic.Int64 // bytes in the queue, and the frame that is being written
	clock    *os.File     // wakes the writer to a fraction of a millisecond, which the runtime's timers do not
	done     chan struct{}
	end      sync.Once

	passed, dropped atomic.Uint64
}

type frame struct {
	due time.Time
	b   []byte
}

func newLane(from, to *os.File, now *atomic.Pointer[setting]) (*lane, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timer: %w", err)
	}
	return &lane{
		from: from, to: to, now: now, queue: make(chan frame, maxFrames), clock: os.NewFile(uintptr(fd), "timer"),
		done: make(chan struct{}),
	}, nil
}

func (l *lane) close() {
	l.end.Do(func() {
		close(l.done)
		l.clock.Close() //nolint:errcheck // wakes the writer
	})
}

var frames = sync.Pool{New: func() any { return new([maxFrame]byte) }}

// read takes frames from one end until it is closed.
func (l *lane) read() error {
	buf := make([]byte, maxFrame)
	for {
		n, err := l.from.Read(buf)
		if err != nil {
			return err
		}
		s := l.now.Load()
		switch {
		case s.cut, s.loss > 0 && rand.Float64() < s.loss, l.waiting.Load() > maxWaiting:
			l.dropped.Add(1)
		case s.delay == 0 && l.waiting.Load() == 0:
			l.pass(buf[:n])
		default:
			l.put(buf[:n], time.Now().Add(s.delay))
		}
	}
}

// put keeps a copy of the frame until it is due.
func (l *lane) put(b []byte, due time.Time) {
	var own []byte
	if len(b) <= smallFrame {
		own = append(make([]byte, 0, len(b)), b...)
	} else {
		large := frames.Get().(*[maxFrame]byte) //nolint:forcetypeassert // the pool has no others
		own = large[:copy(large[:], b)]
	}
	l.waiting.Add(int64(len(b)))
	select {
	case l.queue <- frame{due, own}:
	default:
		l.waiting.Add(-int64(len(b)))
		l.dropped.Add(1)
	}
}

// write passes on each frame when it is due.
func (l *lane) write() {
	for {
		select {
		case <-l.done:
			return
		case f := <-l.queue:
			if !l.await(f.due) {
				return
			}
			l.pass(f.b)
			l.waiting.Add(-int64(len(f.b)))
			if cap(f.b) == maxFrame {
				frames.Put((*[maxFrame]byte)(f.b[:maxFrame]))
			}
		}
	}
}

func (l *lane) pass(b []byte) {
	if _, err := l.to.Write(b); err != nil {
		l.dropped.Add(1) // the far interface is down
		return
	}
	l.passed.Add(1)
}

// await returns at the time, or false when the lane is closed.
func (l *lane) await(due time.Time) bool {
	d := time.Until(due)
	if d <= 0 {
		return true
	}
	raw, err := l.clock.SyscallConn()
	if err != nil {
		return false
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	if err != nil || serr != nil {
		return false
	}
	var count [8]byte
	_, err = l.clock.Read(count[:])
	return err == nil
}
