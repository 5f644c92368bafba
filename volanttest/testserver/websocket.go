package testserver

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // the protocol's
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// maxFrame bounds a frame's payload.
const maxFrame = 64 << 10

// The opcodes that are told apart (RFC 6455 §5.2).
const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10
)

func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // the protocol's
	return base64.StdEncoding.EncodeToString(sum[:])
}

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && r.Header.Get("Sec-WebSocket-Key") != ""
}

// webSocket sends back each message until the other side closes.
func (s *Server) webSocket(w http.ResponseWriter, r *http.Request) {
	h, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "cannot be upgraded", http.StatusInternalServerError)
		return
	}
	c, rw, err := h.Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close() //nolint:errcheck // the other side is gone
	_, err = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		acceptKey(r.Header.Get("Sec-WebSocket-Key")))
	if err != nil {
		return
	}
	for {
		op, payload, err := readFrame(rw.Reader)
		if err != nil {
			return
		}
		if op == opPing {
			op = opPong
		}
		if err := writeFrame(c, op, payload, false); err != nil || op == opClose {
			return
		}
	}
}

// readFrame reads one frame; frames of a message are not joined, since ours have one.
func readFrame(r *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1] & 0x7f)
	switch n {
	case 126:
		var b [2]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(b[:])
	}
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes, the most is %d", n, maxFrame)
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return 0, nil, err
		}
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 0xf, payload, nil
}

// writeFrame writes one whole message, masked as a client must.
func writeFrame(w io.Writer, op byte, payload []byte, masked bool) error {
	var b bytes.Buffer
	b.WriteByte(0x80 | op)
	bit := byte(0)
	if masked {
		bit = 0x80
	}
	if len(payload) < 126 {
		b.WriteByte(bit | byte(len(payload)))
	} else {
		b.WriteByte(bit | 126)
		b.Write(binary.BigEndian.AppendUint16(nil, uint16(min(len(payload), maxFrame-1)))) //nolint:gosec // bounded
	}
	if masked {
		var mask [4]byte
		rand.Read(mask[:]) // never fails
		b.Write(mask[:])
		out := bytes.Clone(payload)
		for i := range out {
			out[i] ^= mask[i%4]
		}
		payload = out
	}
	b.Write(payload)
	_, err := w.Write(b.Bytes())
	return err
}

// WebSocket is a client's side of a websocket of the test server.
type WebSocket struct {
	conn net.Conn
	r    *bufio.Reader
}

// Upgrade makes a websocket of a connection to the test server, by way of whatever speaks HTTP between.
func Upgrade(c net.Conn, host string) (*WebSocket, error) {
	key := make([]byte, 16)
	rand.Read(key) // never fails
	text := base64.StdEncoding.EncodeToString(key)
	_, err := fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", host, text)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil) //nolint:bodyclose // the connection is the caller's
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != acceptKey(text) {
		return nil, fmt.Errorf("not upgraded: %s", resp.Status)
	}
	return &WebSocket{conn: c, r: r}, nil
}

// ErrClosing is returned when the other side has asked to close, with its code in the text.
var ErrClosing = errors.New("the websocket closes")

// Exchange sends a text and reads it back.
func (ws *WebSocket) Exchange(text string) error {
	if err := writeFrame(ws.conn, opText, []byte(text), true); err != nil {
		return err
	}
	op, got, err := readFrame(ws.r)
	switch {
	case err != nil:
		return err
	case op == opClose && len(got) >= 2:
		return fmt.Errorf("%w: code %d", ErrClosing, binary.BigEndian.Uint16(got))
	case op != opText || string(got) != text:
		return fmt.Errorf("sent %q, got %q", text, got)
	}
	return nil
}

// Close closes in order: it says so and waits for the answer.
func (ws *WebSocket) Close() error {
	if err := writeFrame(ws.conn, opClose, []byte{3, 232}, true); err != nil {
		return errors.Join(err, ws.conn.Close())
	}
	_, _, err := readFrame(ws.r)
	return errors.Join(err, ws.conn.Close())
}
