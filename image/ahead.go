package image

import "io"

const (
	aheadSize  = 512 << 10 // bytes of a part
	aheadParts = 4
)

// ahead reads in a goroutine of its own, so that unpacking and merging overlap.
type ahead struct {
	full  chan part
	empty chan []byte
	stop  chan struct{}
	done  chan struct{}

	now part
	off int
}

type part struct {
	b   []byte
	err error // after b
}

// readAhead starts to read r. Close ends that, and returns when r is not used any more.
func readAhead(r io.Reader) *ahead {
	a := &ahead{
		full: make(chan part, aheadParts), empty: make(chan []byte, aheadParts),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadParts {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	for {
		var b []byte
		select {
		case b = <-a.empty:
		case <-a.stop:
			return
		}
		b, err := fill(r, b[:0])
		a.full <- part{b, err}
		if err != nil {
			return
		}
	}
}

// fill reads until b is full or r ends, and keeps r's own error.
func fill(r io.Reader, b []byte) ([]byte, error) {
	for len(b) < cap(b) {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

func (a *ahead) Read(b []byte) (int, error) {
	for a.off == len(a.now.b) {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.b != nil {
			a.empty <- a.now.b
		}
		a.now, a.off = <-a.full, 0
	}
	n := copy(b, a.now.b[a.off:])
	a.off += n
	return n, nil
}

// Close ends the reading.
func (a *ahead) Close() {
	close(a.stop)
	<-a.done
}
