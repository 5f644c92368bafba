package proxy

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// Codes of a Postgres client's first message (PostgreSQL documentation, "Message Formats").
const (
	pgSSLRequest = 80877103
	pgGSSRequest = 80877104
)

// startPostgres answers a Postgres client's request for TLS. Its hello comes next.
func startPostgres(c *frontConn) error {
	if err := c.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	for range 2 { // a request for GSS encryption may come before
		var m [8]byte
		if _, err := io.ReadFull(c, m[:]); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(m[:4]) != 8 {
			return refusePostgres(c)
		}
		switch binary.BigEndian.Uint32(m[4:]) {
		case pgGSSRequest:
			if _, err := c.Write([]byte{'N'}); err != nil {
				return err
			}
		case pgSSLRequest:
			if _, err := c.Write([]byte{'S'}); err != nil {
				return err
			}
			return c.SetDeadline(time.Time{})
		default:
			return refusePostgres(c)
		}
	}
	return errors.New("the client asked for GSS encryption twice")
}

// refusePostgres tells the client why, in Postgres' words: an ErrorResponse with severity, code and message.
func refusePostgres(c *frontConn) error {
	body := "SFATAL\x00VFATAL\x00C28000\x00MThis port serves TLS only: connect with sslmode=require.\x00\x00"
	m := binary.BigEndian.AppendUint32([]byte{'E'}, uint32(4+len(body)))
	_, err := c.Write(append(m, body...))
	return errors.Join(errors.New("the client did not ask for TLS"), err)
}
