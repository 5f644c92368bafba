package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one line of QMP. The longest we ask for lists 64 vCPUs in 16 KiB.
const maxMessage = 64 << 10

// errMonitor says that the monitor is gone; with the process, mostly.
var errMonitor = errors.New("the monitor is closed")

// message is any line that QEMU sends: a greeting, a reply or an event.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// request is one command.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

func call(name string, args any) request { return request{Execute: name, Arguments: args} }

// monitor is a QMP client. QEMU serves one at a time.
type monitor struct {
	conn    *net.UnixConn
	onEvent func(name string, data json.RawMessage) // called by the reader; must not block
	done    chan struct{}                           // closed when the reader has ended

	mu      sync.Mutex
	next    uint64                  // guarded by mu
	waiting map[uint64]chan message // guarded by mu; nil once closed
}

func newMonitor(conn *net.UnixConn, onEvent func(string, json.RawMessage)) *monitor {
	m := &monitor{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	go m.read()
	return m
}

// close ends the connection; calls that wait get errMonitor.
func (m *monitor) close() {
	m.conn.Close() //nolint:errcheck // nothing was promised on it
	<-m.done
}

func (m *monitor) read() {
	defer close(m.done)
	defer m.fail()
	r := bufio.NewReaderSize(m.conn, maxMessage)
	for {
		msg, err := readMessage(r)
		switch {
		case err != nil:
			return
		case msg.Event != "":
			m.onEvent(msg.Event, msg.Data)
		case msg.ID != nil:
			m.deliver(*msg.ID, msg)
		}
	}
}

// readMessage reads one line. Lines that are no JSON end the session: QEMU never sends them.
func readMessage(r *bufio.Reader) (message, error) {
	var msg message
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return msg, fmt.Errorf("a message of more than %d bytes", r.Size())
	case err != nil:
		return msg, err
	}
	return msg, json.Unmarshal(line, &msg)
}

func (m *monitor) deliver(id uint64, msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.waiting[id]; c != nil {
		delete(m.waiting, id)
		c <- msg // has room for one
	}
}

func (m *monitor) fail() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.waiting {
		close(c)
	}
	m.waiting = nil
	m.conn.Close() //nolint:errcheck // nothing was promised on it
}

// do sends commands in one write and waits for all their replies, or the first error. QEMU takes them
// in order. A file goes with them, for getfd. The last command's return value is the result.
func (m *monitor) do(ctx context.Context, file *os.File, cmds ...request) (json.RawMessage, error) {
	var last json.RawMessage
	replies, err := m.send(file, cmds)
	if err != nil {
		return nil, err
	}
	for i, c := range replies {
		select {
		case msg, ok := <-c:
			switch {
			case !ok:
				return nil, fmt.Errorf("%s: %w", cmds[i].Execute, errMonitor)
			case msg.Error != nil:
				return nil, fmt.Errorf("%s: %w", cmds[i].Execute, msg.Error)
			}
			last = msg.Return
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", cmds[i].Execute, ctx.Err())
		}
	}
	return last, nil
}

func (m *monitor) send(file *os.File, cmds []request) ([]chan message, error) {
	var oob []byte
	if file != nil {
		oob = unix.UnixRights(int(file.Fd()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == nil {
		return nil, errMonitor
	}
	var out []byte
	replies := make([]chan message, len(cmds))
	for i, c := range cmds {
		m.next++
		c.ID = m.next
		b, err := json.Marshal(c)
		if err != nil {
			return nil, err
		}
		out = append(append(out, b...), '\n')
		replies[i] = make(chan message, 1)
		m.waiting[c.ID] = replies[i]
	}
	n, _, err := m.conn.WriteMsgUnix(out, oob, nil)
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMonitor, err)
	}
	return replies, nil
}
