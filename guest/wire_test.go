package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, frame{kind: kindData, sub: subErr, stream: 7, payload: []byte("abc")}))
	f.Add(append(make([]byte, 20), appendFrame(nil, frame{kind: kindOpen, stream: 1, payload: []byte(callExec)})...))
	f.Add([]byte{2, 2, 0xff, 0xff, 0, 0, 0, 1})
	f.Add(appendSync(nil, hail, Version, nonce{1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			fr, err := readFrame(r)
			if err != nil {
				return
			}
			again, err := readFrame(bufio.NewReader(bytes.NewReader(appendFrame(nil, fr))))
			if err != nil || again.kind != fr.kind || again.sub != fr.sub || again.stream != fr.stream || !bytes.Equal(again.payload, fr.payload) {
				t.Fatalf("frame %+v read again: %+v, %v", fr, again, err)
			}
		}
	})
}

func FuzzScanSync(f *testing.F) {
	whole := appendSync(nil, hail, Version, nonce{1, 2, 3})
	f.Add([]byte{})
	f.Add(whole[:len(whole)-1])
	f.Add(append([]byte("\xf5\xf5volan"), whole...))
	f.Add(appendSync(nil, echo, 9, nonce{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Whatever came before, a handshake sent twice is found: the first may complete a cut one.
		n := nonce{9, 8, 7}
		b = append(appendSync(b, hail, Version, n), appendSync(nil, hail, Version, n)...)
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			v, got, err := scanSync(r, hail)
			if err != nil {
				t.Fatalf("not found: %v", err)
			}
			if got == n && v == Version {
				return
			}
		}
	})
}

func FuzzParseLine(f *testing.F) {
	f.Add(appendLine(nil, LogLine{Seq: 1, Time: time.Unix(5, 6), Source: "stderr", Text: "abc"}))
	f.Add(bytes.Repeat([]byte{0xff}, lineHeader))
	f.Fuzz(func(t *testing.T, b []byte) {
		for {
			l, rest, ok, err := parseLine(b)
			if err != nil || !ok {
				return
			}
			if got := appendLine(nil, l); !bytes.Equal(got, b[:len(b)-len(rest)]) {
				t.Fatalf("line %+v: got %x, want %x", l, got, b[:len(b)-len(rest)])
			}
			b = rest
		}
	})
}

// script is a link that reads given bytes and then ends.
type script struct{ io.Reader }

func (script) Write(b []byte) (int, error) { return len(b), nil }
func (script) Close() error                { return nil }

// FuzzServe gives the guest's side a session of any bytes: it must end with them.
func FuzzServe(f *testing.F) {
	req := appendFrame(nil, frame{kind: kindOpen, stream: 1, payload: []byte(callExec)})
	req = appendFrame(req, frame{kind: kindData, stream: 1, payload: []byte(`{"args":["x"]}`)})
	req = appendFrame(req, frame{kind: kindEnd, stream: 1})
	f.Add(req)
	f.Add(appendFrame(req, frame{kind: kindWindow, sub: subOut, stream: 1, payload: []byte{0xff, 0xff, 0xff, 0xff}}))
	f.Add(appendFrame(req, frame{kind: kindReset, stream: 1}))
	f.Add(append(req, req...))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(appendSync(nil, hail, Version, nonce{1}), b...)
		if err := Serve(t.Context(), script{bytes.NewReader(b)}, idle{}); !errors.Is(err, io.EOF) && !errors.Is(err, ErrShutdown) {
			t.Errorf("Serve: got %v, want EOF", err)
		}
	})
}

// FuzzSession gives the host's side any bytes for answers.
func FuzzSession(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, frame{kind: kindData, stream: 1, payload: append([]byte{0}, "{}"...)}), frame{kind: kindEnd, stream: 1}))
	f.Add(appendFrame(nil, frame{kind: kindData, sub: subOut, stream: 1, payload: bytes.Repeat([]byte{0xff}, 100)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, w := io.Pipe()
		link := &answering{r: r}
		link.onHail = func(n nonce) {
			msg := appendFrame(appendSync(nil, echo, Version, n), frame{kind: kindHello, payload: []byte("{}")})
			go func() {
				_, err := w.Write(append(msg, b...))
				w.CloseWithError(errors.Join(err, io.EOF))
			}()
		}
		s, err := Open(t.Context(), link)
		if err != nil {
			return
		}
		// Either answer will do, but it must come: the link ends.
		_ = s.Logs(t.Context(), 0, func(LogLine) {})
		_, _ = s.Wait(t.Context())
		_, _ = s.Exec(t.Context(), Exec{Args: []string{"x"}})
		_ = s.Close()
	})
}

// A guest that breaks a bound loses its session; the host holds no more than the bound.
func TestHostileGuest(t *testing.T) {
	data := func(sub uint8, stream uint32, n int) []byte {
		var b []byte
		for ; n > 0; n -= maxPayload {
			b = appendFrame(b, frame{kind: kindData, sub: sub, stream: stream, payload: make([]byte, min(n, maxPayload))})
		}
		return b
	}
	for name, b := range map[string][]byte{
		"output beyond the window":  data(subOut, 1, window+1),
		"errors beyond the window":  data(subErr, 1, window+1),
		"a reply beyond its bound":  data(subMessage, 1, maxReply+1),
		"data behind the end":       append(appendFrame(nil, frame{kind: kindEnd, sub: subOut, stream: 1}), data(subOut, 1, 1)...),
		"a window of 5 bytes":       appendFrame(nil, frame{kind: kindWindow, sub: subIn, stream: 1, payload: make([]byte, 5)}),
		"a window beyond its bound": appendFrame(nil, frame{kind: kindWindow, sub: subIn, stream: 1, payload: []byte{0, 0, 0, 1}}),
		"a call by the guest":       appendFrame(nil, frame{kind: kindOpen, stream: 1, payload: []byte(callStart)}),
		"a frame of no kind":        {99, 0, 0, 0, 0, 0, 0, 1},
		"a frame too long":          {byte(kindData), 0, 0xff, 0xff, 0, 0, 0, 1},
		"another handshake":         appendSync(nil, echo, Version, nonce{}),
	} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			opened := make(chan struct{})
			link := &answering{r: r, opened: opened, onHail: func(n nonce) {
				go func() {
					_, _ = w.Write(appendFrame(appendSync(nil, echo, Version, n), frame{kind: kindHello, payload: []byte("{}")}))
				}()
			}}
			s, err := Open(t.Context(), link)
			if err != nil {
				t.Fatal(err)
			}
			// The call is open before the guest answers to it; its writer takes nothing.
			done := make(chan error, 1)
			go func() {
				_, err := s.Exec(t.Context(), Exec{Args: []string{"x"}, Stdin: blocked{s.Done()}, Stdout: blocked{s.Done()}, Stderr: blocked{s.Done()}})
				done <- err
			}()
			<-opened
			_, _ = w.Write(b) // the session may end before its last byte
			if err := <-done; !errors.Is(err, ErrClosed) {
				t.Errorf("Exec: got %v, want ErrClosed", err)
			}
			<-s.Done()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// blocked is stdio that gives and takes nothing until its channel is closed.
type blocked struct{ until <-chan struct{} }

func (b blocked) Read([]byte) (int, error)    { <-b.until; return 0, io.EOF }
func (b blocked) Write(p []byte) (int, error) { <-b.until; return len(p), nil }

// answering calls onHail with the first hail's nonce, and closes opened, if there, with the first call.
type answering struct {
	r      *io.PipeReader
	onHail func(nonce)
	hailed bool
	opened chan struct{}
}

func (a *answering) Read(b []byte) (int, error) { return a.r.Read(b) }
func (a *answering) Close() error               { return a.r.Close() }
func (a *answering) Write(b []byte) (int, error) {
	if _, n, ok := parseSync(b, hail); ok && !a.hailed {
		a.hailed = true
		a.onHail(n)
	}
	if len(b) > 0 && b[0] == byte(kindOpen) && a.opened != nil {
		close(a.opened)
		a.opened = nil
	}
	return len(b), nil
}

// idle is a Backend that does nothing.
type idle struct{}

func (idle) Hello() Hello                                            { return Hello{Version: Version} }
func (idle) Configure(context.Context, Config) error                 { return nil }
func (idle) Start(context.Context) error                             { return nil }
func (idle) Put(context.Context, File) error                         { return nil }
func (idle) Wait(ctx context.Context) (Exit, error)                  { return Exit{}, nil }
func (idle) Signal(context.Context, int) error                       { return nil }
func (idle) Logs(context.Context, uint64, func(LogLine) error) error { return nil }
func (idle) Thaw(context.Context, Thaw) error                        { return nil }
func (idle) Freeze(context.Context) error                            { return nil }
func (idle) Processes(context.Context) ([]Process, error)            { return nil, nil }
func (idle) Stats(context.Context) (Stats, error)                    { return Stats{}, nil }
func (idle) Shutdown(context.Context) error                          { return nil }
func (idle) Exec(ctx context.Context, e Exec) (Exit, error) {
	_, err := io.Copy(e.Stdout, e.Stdin)
	return Exit{}, err
}
