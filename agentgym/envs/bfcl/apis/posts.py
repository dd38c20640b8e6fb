"""A place of short public posts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json, as_key, by_number


class TwitterAPI(Api):
    """``tweets`` and ``comments``: by the number of the tweet. ``retweets``: the numbers, by user.

    The benchmark never finds the comments that a task's configuration brings, for it keeps them under texts: here under quoted ones.
    """

    username: str
    password: str
    authenticated: bool
    tweets: dict[str, Json]
    comments: dict[str, list[Json]]
    retweets: dict[str, list[int]]
    following_list: list[str]
    tweet_counter: int

    @classmethod
    def start(cls, tables: Mapping[str, Any], config: Json) -> Json:
        fields = super().start(tables, config)
        return {**fields, "comments": {repr(name): comments for name, comments in fields["comments"].items()}}

    @classmethod
    def public(cls, fields: Json) -> Json:
        tweets = {as_key(number): tweet for number, tweet in fields["tweets"].items()}
        comments = {name.strip("'") if name[0] == "'" else int(name): said for name, said in fields["comments"].items()}
        return super().public({**fields, "tweets": tweets, "comments": comments})

    def authenticate_twitter(self, username: str, password: str) -> Json:
        if (username, password) != (self.username, self.password):
            return {"authentication_status": False}
        self.authenticated = True
        return {"authentication_status": True}

    def posting_get_login_status(self) -> Json:
        return {"login_status": bool(self.authenticated)}

    def post_tweet(self, content: str, tags: list[str] | None = None, mentions: list[str] | None = None) -> Json:
        if not self.authenticated:
            return _refused("posting")
        number = self.tweet_counter
        tweet = {"id": number, "username": self.username, "content": content, "tags": tags or [], "mentions": mentions or []}
        self.tweets[str(number)] = tweet
        self.tweet_counter += 1
        return tweet

    def retweet(self, tweet_id: int) -> Json:
        if not self.authenticated:
            return _refused("retweeting")
        if by_number(self.tweets, tweet_id) is None:
            return _unknown(tweet_id)
        mine = self.retweets.setdefault(self.username, [])
        if tweet_id in mine:
            return {"retweet_status": "Already retweeted"}
        mine.append(tweet_id)
        return {"retweet_status": "Successfully retweeted"}

    def comment(self, tweet_id: int, comment_content: str) -> Json:
        if not self.authenticated:
            return _refused("commenting")
        if by_number(self.tweets, tweet_id) is None:
            return _unknown(tweet_id)
        self.comments.setdefault(str(tweet_id), []).append({"username": self.username, "content": comment_content})
        return {"comment_status": "Comment added successfully"}

    def mention(self, tweet_id: int, mentioned_usernames: list[str]) -> Json:
        tweet = by_number(self.tweets, tweet_id)
        if tweet is None:
            return _unknown(tweet_id)
        tweet["mentions"].extend(mentioned_usernames)
        return {"mention_status": "Users mentioned successfully"}

    def follow_user(self, username_to_follow: str) -> Json:
        if not self.authenticated:
            return _refused("following")
        if username_to_follow in self.following_list:
            return {"follow_status": False}
        self.following_list.append(username_to_follow)
        return {"follow_status": True}

    def list_all_following(self) -> Json:
        return {"following_list": self.following_list} if self.authenticated else _refused("listing following")

    def unfollow_user(self, username_to_unfollow: str) -> Json:
        if not self.authenticated:
            return _refused("unfollowing")
        if username_to_unfollow not in self.following_list:
            return {"unfollow_status": False}
        self.following_list.remove(username_to_unfollow)
        return {"unfollow_status": True}

    def get_tweet(self, tweet_id: int) -> Json:
        tweet: Json | None = by_number(self.tweets, tweet_id)
        return _unknown(tweet_id) if tweet is None else tweet

    def get_user_tweets(self, username: str) -> list[Json]:
        return [tweet for tweet in self.tweets.values() if tweet["username"] == username]

    def search_tweets(self, keyword: str) -> list[Json]:
        wanted = keyword.lower()
        return [
            tweet
            for tweet in self.tweets.values()
            if wanted in tweet["content"].lower() or wanted in [tag.lower() for tag in tweet["tags"]]
        ]

    def get_tweet_comments(self, tweet_id: int) -> Json | list[Json]:
        if by_number(self.tweets, tweet_id) is None:
            return _unknown(tweet_id)
        return by_number(self.comments, tweet_id) or []

    def get_user_stats(self, username: str) -> Json:
        return {
            "tweet_count": sum(tweet["username"] == username for tweet in self.tweets.values()),
            "following_count": len(self.following_list) if username == self.username else 0,
            "retweet_count": len(self.retweets.get(username, [])),
        }


def _refused(doing: str) -> Json:
    return {"error": f"User not authenticated. Please authenticate before {doing}."}


def _unknown(tweet_id: object) -> Json:
    return {"error": f"Tweet with ID {tweet_id} not found."}
