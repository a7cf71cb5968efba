"""The users of a closed loop, each with requests of its own.

>>> users = ClosedLoopUsers(users=2, requests=5)
>>> [users.next_request(user) for user in (0, 1, 1, 1, 0, 0)]
[0, 1, 3, 2, 4, None]
"""


class ClosedLoopUsers:
    """The users of a closed loop, and the requests that they have not sent yet.

    Request i belongs to user i modulo users.  A user sends its own requests in order.
    So its k-th request has the same lengths in every system, however fast the others are.
    After its own requests, a user sends the first unsent request of the others. Otherwise the load
    would fall towards the end of a run, because quick users finish first.
    """

    def __init__(self, users: int, requests: int) -> None:
        self.users, self.requests = users, requests
        self.own = list(range(users))  # by user: its next request, unless another user has sent it
        self.unsent = bytearray(b"\1") * requests  # 1 for each unsent request
        self.left = requests  # how many are unsent
        self.first = 0  # all requests before it are sent
        self.senders: dict[int, int] = {}  # by request in flight: the user that sent it

    def next_request(self, user: int) -> int | None:
        """Return the request that a user sends now; None if all are sent."""
        if not self.left:
            return None
        number = self.own[user]
        while number < self.requests and not self.unsent[number]:
            number += self.users
        self.own[user] = number + self.users
        if number >= self.requests:
            number = self.first = self.unsent.find(1, self.first)
        self.unsent[number] = 0
        self.left -= 1
        self.senders[number] = user
        return number

    def sender(self, number: int) -> int:
        """Return the user that sent a request which has ended."""
        return self.senders.pop(number)
